"""One attempt of a run: its end, its steps, and the seconds of each category, from the records of its ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ..eventlog.reading import RankLog
from ..eventlog.records import Ended, Heartbeat, Record, Started, TrainerGone, TrainingBegan
from ..events import Committed, Leaving, NoticeReceived, Resumed, Salvaged, SharesCounted, Staged

CATEGORIES: Final = {
    "productive": "steps that were kept",
    "wasted": "steps that were lost and trained again",
    "startup": "start of the program",
    "prep": "preparation of the training",
    "restore": "reading of the checkpoint",
    "save": "stalls of saves",
    "leave": "last save and leaving",
}
"""Categories of paid time. Each second is in exactly one of them."""

SILENT_S: Final = 300.0
"""Time without a record after which an attempt without an end counts as killed. A heartbeat comes every 30 s."""

INTERRUPTED: Final = ("left", "killed")
"""Ends that count as interruptions."""

LAST_SAVES: Final = ("notice", "end")
"""Triggers of saves that may be the last one of an attempt."""
_LONGEST_START_S: Final = 1e6

_E = TypeVar("_E")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt. Its times are those of rank 0."""

    number: int
    world_size: int
    host: str
    how: str
    """``finished``, ``left`` after a notice, ``killed``, ``failed``, ``stopped`` or ``running``."""
    error: str | None
    """Class of the exception that ended it."""
    notices: tuple[tuple[float, str], ...]
    """Time and source of each notice that is no soft one."""
    began_at: float
    """Start of the process, or of the session if that is unknown. Seconds since 1970."""
    trained_from: float | None
    """Time at which training began. None if it never did."""
    trained_until: float | None
    """Time at which the last step was done, or the end."""
    ended_at: float
    """The end, or the last record."""
    saves: tuple[tuple[float, int], ...]
    """Time and step of each save of rank 0 that was stored."""
    start_step: int | None
    """Step after which training began, 0 on a first run. None if training never began."""
    reached_step: int
    """Last step that is known to be done."""
    committed_step: int | None
    """Newest step that all ranks have stored, of this attempt."""
    kept_steps: int = 0
    """Steps of this attempt that no later attempt has trained again."""
    lost_steps: int = 0
    """Steps of this attempt that were trained again, or are not stored."""
    seconds: dict[str, float]
    """Seconds by :data:`CATEGORIES`."""

    @property
    def paid_s(self) -> float:
        """Seconds from begin to end."""
        return self.ended_at - self.began_at

    @property
    def is_interrupted(self) -> bool:
        """True if it ended without being done, and neither by an error nor by its user."""
        return self.how in INTERRUPTED


def attempt_of(ranks: Sequence[RankLog], now: float, *, is_last: bool) -> Attempt:
    """
    Return an attempt. Its steps count as kept until :func:`.figures.report_of` knows what later attempts trained again.

    Args:
        ranks: The logs of its ranks, that of the lowest rank first.
        now: The present time.
        is_last: Whether no later attempt is known.
    """
    first = ranks[0]
    records = first.records
    opened = records[0]
    process_s = (opened.entry.process_s if isinstance(opened.entry, Started) else None) or 0.0
    process_s = process_s if 0 < process_s < _LONGEST_START_S else 0.0  # no log is trusted
    began = opened.monotonic - process_s
    ended = _end_of(records)
    offset = opened.at - opened.monotonic
    is_over = not is_last or now - max(rank.records[-1].at for rank in ranks) > SILENT_S
    how, error = _how(ranks, is_over=is_over)
    training = next((each for each in records if isinstance(each.entry, TrainingBegan)), None)
    last = None if training is None else min(max(_last_step_ended(records, ended), training.monotonic), ended)
    start = None if training is None else step_of(training.entry) or 0
    reached = max((step_of(each.entry) or 0 for rank in ranks for each in rank.records), default=0)
    return Attempt(
        number=first.attempt,
        world_size=first.world_size,
        host=first.host,
        how=how,
        error=error,
        notices=tuple((at, source) for at, source in _notices(ranks)),
        began_at=began + offset,
        trained_from=None if training is None else training.monotonic + offset,
        trained_until=None if last is None else last + offset,
        ended_at=ended + offset,
        saves=tuple(
            (each.monotonic + offset, each.entry.step) for each in records if isinstance(each.entry, Committed)
        ),
        start_step=start,
        reached_step=max(reached, start or 0),
        committed_step=_committed(ranks),
        seconds=_seconds(records, began, None if training is None else training.monotonic, last, ended),
    )


def entries(records: Iterable[Record], kind: type[_E]) -> list[_E]:
    """Return the entries of one *kind* in *records*."""
    return [each.entry for each in records if isinstance(each.entry, kind)]


def plausible(durations: Iterable[float]) -> list[float]:
    """Return those of *durations* that can be one, because no log is trusted."""
    return [each for each in durations if 0 <= each < math.inf]


def _end_of(records: Sequence[Record]) -> float:
    """Return the monotonic end of the trainer: its own word, else that of its pusher, else the last record."""
    for kind in (Ended, TrainerGone):
        if found := [each.monotonic for each in records if isinstance(each.entry, kind)]:
            return found[-1]
    return records[-1].monotonic


def _how(ranks: Sequence[RankLog], *, is_over: bool) -> tuple[str, str | None]:
    """Return how the attempt ended, and the class of the exception."""
    ends = [end for rank in ranks for end in entries(rank.records, Ended)]
    error = next((end.error for end in ends if end.error is not None), None)
    if any(end.is_finished for end in ends):
        return "finished", None
    silent = [rank for rank in ranks if not entries(rank.records, Ended) and not entries(rank.records, Leaving)]
    if any(is_over or entries(rank.records, TrainerGone) for rank in silent):
        return "killed", error
    if silent:
        return "running", None
    if any(entries(rank.records, Leaving) for rank in ranks):
        return "left", None
    return ("stopped" if error in (None, "KeyboardInterrupt") else "failed"), error


def _last_step_ended(records: Sequence[Record], ended: float) -> float:
    """Return the monotonic time from which on nothing was trained any more: the start of the last save, or the end."""
    leaving = [each.monotonic for each in records if isinstance(each.entry, Leaving)]
    until = min([*leaving, ended])
    saves = [
        each.monotonic - sum(plausible([each.entry.copy_s]))
        for each in records
        if isinstance(each.entry, Staged) and each.entry.trigger in LAST_SAVES and each.monotonic <= until
    ]
    return saves[-1] if saves and (leaving or _is_finished(records)) else until


def _is_finished(records: Sequence[Record]) -> bool:
    """Return whether the session was closed with a training that is done."""
    return any(end.is_finished for end in entries(records, Ended))


def _notices(ranks: Sequence[RankLog]) -> list[tuple[float, str]]:
    return sorted(
        (each.at, each.entry.source)
        for rank in ranks
        for each in rank.records
        if isinstance(each.entry, NoticeReceived) and each.entry.kind != "soft"
    )


def step_of(entry: object) -> int | None:
    """Return the step that *entry* says is done. None if it says none."""
    return entry.step if isinstance(entry, TrainingBegan | Heartbeat | Ended | Staged | Committed) else None


def _committed(ranks: Sequence[RankLog]) -> int | None:
    """Return the newest step that all ranks have stored, as far as their logs say."""
    counted = [each.visible_step for rank in ranks for each in entries(rank.records, SharesCounted)]
    visible = {step for step in counted if step is not None}
    if len(ranks) == ranks[0].world_size:
        shares = [{each.step for each in entries(rank.records, Committed)} for rank in ranks]
        visible |= shares[0].intersection(*shares[1:])
    return max(visible, default=None)


def _seconds(
    records: Sequence[Record], began: float, trained_from: float | None, trained_until: float | None, ended: float
) -> dict[str, float]:
    """Return the seconds of each category, with all steps as productive ones. Times are monotonic."""
    opened = records[0].monotonic
    ready = ended if trained_from is None else min(trained_from, ended)
    read_s = sum(plausible([each.load_s for each in entries(records, Resumed)]))
    read_s += sum(plausible([each.push_s for each in entries(records, Salvaged)]))
    restore_s = min(read_s, max(ready - opened, 0.0))
    last = ended if trained_until is None else max(trained_until, ready)
    staged = entries([each for each in records if each.monotonic <= last], Staged)
    stall_s = sum(plausible([each.stall_s for each in staged if each.trigger not in LAST_SAVES]))
    save_s = min(stall_s, last - ready)
    return {
        "productive": last - ready - save_s,
        "wasted": 0.0,
        "startup": opened - began,
        "prep": ready - opened - restore_s,
        "restore": restore_s,
        "save": save_s,
        "leave": ended - last,
    }
