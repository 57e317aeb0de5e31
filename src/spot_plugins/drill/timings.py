"""The figures of each fault: steps lost, and seconds to save, to be durable, to resume and to the next new step."""

from __future__ import annotations

from dataclasses import dataclass

from ..eventlog.reading import read_event_log
from ..events import Committed, Resumed, Staged
from ..store import open_store
from .lives import Injected, Life, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultFigures:
    """The figures of one fault. None: not known, or there is no such thing."""

    fault: str
    told: str
    life: int
    step: int
    """The last step that was done before the end, or before the fault if the training survived it."""
    committed: int
    """The newest step in the store when the fault came."""
    resumed_from: int | None
    exit_code: int | None
    left_s: float | None
    """Seconds from the fault to the end of the command."""
    save_s: float | None
    """Seconds until the step that was resumed from was in host memory."""
    durable_s: float | None
    """Seconds from there until it was stored."""
    load_s: float | None
    """Seconds in which the next start has read it."""
    next_step_s: float | None
    """Seconds from the next start of the command to a step that had not been done before. For a fault that the training
    survived, from its end."""

    @property
    def lost_steps(self) -> int | None:
        """Steps that were trained again."""
        return None if self.resumed_from is None else max(0, self.step - self.resumed_from)


def figures_of(run: Run) -> list[FaultFigures]:
    """Return the figures of all faults of *run*, in their order."""
    records = [
        record.entry for log in read_event_log(open_store(run.url)).ranks if log.rank == 0 for record in log.records
    ]
    found = []
    for life in run.lives:
        after = next((each for each in run.lives if each.number == life.number + 1), None)
        for injected in life.injected:
            if not injected.fault.ends_training:
                found.append(_survived(life, injected))
                continue
            start = None if after is None else after.log.start_step
            staged = [each.copy_s for each in records if isinstance(each, Staged) and each.step == start]
            stored = [each.push_s for each in records if isinstance(each, Committed) and each.step == start]
            loaded = [each.load_s for each in records if isinstance(each, Resumed) and each.step == start]
            found.append(
                FaultFigures(
                    fault=injected.fault.name,
                    told=injected.told,
                    life=life.number,
                    step=life.reached_step,
                    committed=injected.committed,
                    resumed_from=start,
                    exit_code=life.exit_code,
                    left_s=life.ended_at - injected.at,
                    save_s=staged[-1] if staged else None,
                    durable_s=stored[-1] if stored else None,
                    load_s=loaded[-1] if loaded else None,
                    next_step_s=None if after is None else _until_new(after, life.reached_step, after.began_at),
                )
            )
    return found


def _survived(life: Life, injected: Injected) -> FaultFigures:
    ended_at = injected.at if injected.end is None else injected.end.at
    done = max((step for step, at in life.reached_at.items() if at <= ended_at), default=injected.step)
    return FaultFigures(
        fault=injected.fault.name,
        told=injected.told,
        life=life.number,
        step=injected.step,
        committed=injected.committed,
        resumed_from=None,
        exit_code=None,
        left_s=None,
        save_s=None,
        durable_s=None,
        load_s=None,
        next_step_s=_until_new(life, done, ended_at),
    )


def _until_new(life: Life, step: int, since: float) -> float | None:
    """Return the seconds from *since* until *life* had done more than *step*."""
    new = [at for number, at in life.reached_at.items() if number > step]
    return min(new) - since if new else None
