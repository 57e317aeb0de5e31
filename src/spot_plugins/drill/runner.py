"""The runner: the command left alone, then under a plan of faults, started again after each."""

from __future__ import annotations

import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from ..config import DEFAULT_GRACE_S
from ..errors import ConfigError
from ..eventlog.reading import read_event_log
from ..events import (
    Committed,
    Leaving,
    LocalWriteFailed,
    NoticeReceived,
    NoticeSourcesFound,
    PushFailing,
    SaveAbandoned,
)
from ..store import open_store
from .command import check_launcher, with_ranks
from .faults import DEFAULT_FAULTS
from .lives import FaultEnd, Injected, Life, LifeLog, Run
from .plan import Pace, Planned, plan_of
from .processes import described, is_other
from .promise import told_exit
from .target import Fault
from .training import Place, Training

POLL_S: Final = 0.02
"""Seconds between two looks at a training."""

CONTROL_STALL_S: Final = 600.0
"""Longest time without a new step, while nothing is known of the training."""

LEAST_STALL_S: Final = 120.0
"""The same under faults. It is longer if the control had longer times without a step."""

STALL_FACTOR: Final = 10

LEAVE_S: Final = 120.0
"""Longest time from the death of a rank or a machine to the end of the command."""

ORPHAN_S: Final = 10.0
"""Longest time that processes may need to end after the command."""

PUSHER_S: Final = 120.0
"""The same for pusher processes, which finish what they hold."""

LEAST_NOTICE_S: Final = 8.0
"""Shortest time of a notice. It has a place in short trainings, which would be over before a longer one."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The choices for one drill."""

    faults: tuple[Fault, ...] = DEFAULT_FAULTS
    num_faults: int | None = None
    """Number of faults, which are taken from *faults* in turn. None: each once."""
    seed: int = 0
    """Seed of all that is drawn: steps and ranks."""
    ranks: tuple[int, ...] = ()
    """Number of processes of each start of the command, the last one for all others. Empty: as in the command."""
    grace_s: float | None = None
    """Seconds from a notice until everything is killed. None: as the training expects."""
    max_steps: int | None = None
    """The step after which the training ends. None: its own end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that was seen in a drill."""

    command: tuple[str, ...]
    options: Options
    control: Run
    pace: Pace | None
    """None if the control failed."""
    rehearsal: Run | None
    """None if the control failed."""


class Runner:
    """
    Runs the trainings of one drill.

    Args:
        command: The training command.
        options: What to do.
        folder: An empty folder for everything.
        tell: Gets a line for each thing that happens.
    """

    def __init__(self, command: Sequence[str], options: Options, folder: Path, tell: Tell) -> None:
        self._command = tuple(command)
        self._options = options
        self._folder = folder
        self._tell = tell
        self._random = random.Random(options.seed)

    def run(self) -> Facts:
        """
        Run the control and, if it ends well, the rehearsal.

        Raises:
            ConfigError: The command or the options cannot work.
        """
        options = self._options
        commands = [with_ranks(self._command, number) for number in options.ranks] or [self._command]
        if any(fault.kills_launcher for fault in options.faults):
            check_launcher(self._command)
        place = Place(self._folder / "control")
        self._tell("the control: the training, left alone")
        life = self._live(place, 1, commands[0], deque(), CONTROL_STALL_S)
        control = self._run_of(place, [life])
        pace = rehearsal = None
        if life.exit_code == 0 and not life.problems and life.reached_at:
            pace = self._pace(life, control.url)
            num_faults = options.num_faults or len(options.faults)
            plan = plan_of(options.faults, num_faults, pace, self._random)
            rehearsal = self._rehearse(commands, plan, pace)
        return Facts(command=self._command, options=options, control=control, pace=pace, rehearsal=rehearsal)

    def _rehearse(self, commands: Sequence[tuple[str, ...]], plan: Sequence[Planned], pace: Pace) -> Run:
        place = Place(self._folder / "rehearsal")
        pending, lives = deque(plan), list[Life]()
        stall_s = max(LEAST_STALL_S, STALL_FACTOR * pace.longest_gap_s)
        while not lives or (lives[-1].ending is not None and not _is_over(lives[-1], pace)):
            command = commands[min(len(lives), len(commands) - 1)]
            self._tell(f"the rehearsal, start {len(lives) + 1}; {len(pending)} faults are left")
            lives.append(self._live(place, len(lives) + 1, command, pending, stall_s, pace))
        return self._run_of(place, lives, pending)

    def _live(
        self,
        place: Place,
        number: int,
        command: tuple[str, ...],
        pending: deque[Planned],
        stall_s: float,
        pace: Pace | None = None,
    ) -> Life:
        """Run one life. *pending* loses the faults that are injected. *pace* is that of the control, if it is known."""
        since = place.newest_attempt()
        output = self._folder / f"{place.folder.path.name}-{number}.txt"
        life = Life(number=number, command=command, output=output, began_at=time.monotonic())
        max_steps = self._options.max_steps
        try:
            training = Training(place, command, output, max_steps, self._random)
        except OSError as error:
            raise ConfigError(f"{command[0]} cannot be started: {error.strerror}") from error
        watch, least_step = _Watch(training, life, stall_s), 0
        while watch.runs():
            has_begun = not since or watch.step > watch.first_step
            if pending and pace is not None and has_begun and watch.step >= max(pending[0].step, least_step):
                injected = self._inject(place, training, life, pending[0].fault, pace)
                if injected is None:
                    continue  # the training is over, as the next look will find
                pending.popleft()
                if injected.fault.ends_training:
                    self._wait_for_end(place, training, life, injected)
                    break
                self._outlast(place, training, life, watch, pace)
                # A new step shows that the training continues, if there is one to come.
                least_step = min(training.last_step() + 1, pace.last_step)
        self._settle(place, training, life)
        life.records = training.records()
        if life.ending is not None:
            life.ending.fault.end(training)
        life.log = replace(_log_of(place, since), seen=training.seen())
        self._tell(f"{told_exit(life)} after step {life.reached_step}, {life.ended_at - life.began_at:.1f} s")
        return life

    def _inject(self, place: Place, training: Training, life: Life, fault: Fault, pace: Pace) -> Injected | None:
        """Inject *fault*. Return None if there is nothing left that it could hit."""
        step, damaged = training.last_step(), None
        committed = next(iter(place.committed()), 0)
        rest_s = (pace.last_step - step) * pace.step_s
        training.grace_s = pace.grace_s
        training.notice_s = min(pace.grace_s, max(LEAST_NOTICE_S, rest_s / 2))
        limit_s = fault.limit_s(training) if fault.is_notice else LEAVE_S
        if fault.is_notice and not fault.takes_machine:
            limit_s += LEAVE_S
        at = time.monotonic()
        try:
            told = fault.begin(training)
        except (ProcessLookupError, LookupError):
            return None
        self._tell(f"step {step}: {told}")
        if fault.damages_newest:
            damaged, committed, *_ = [*place.committed(), 0]
        injected = Injected(
            fault=fault, told=told, at=at, step=step, committed=committed, damaged=damaged, limit_s=limit_s
        )
        life.injected.append(injected)
        return injected

    def _outlast(self, place: Place, training: Training, life: Life, watch: _Watch, pace: Pace) -> None:
        """End the fault that came last, once it has hit and lasted long enough, or the training is over."""
        injected = life.injected[-1]
        until = injected.at + injected.fault.lasts_s
        # wait: POLL_S; no step for stall_s ends the training, and so the fault
        hit_step = None
        while watch.runs():
            if hit_step is None and injected.fault.has_hit(training):
                hit_step = watch.step
            if hit_step is None or time.monotonic() <= until:
                continue
            # A step after the hit shows that the training does not wait for its saves.
            if not injected.fault.hits_saves or watch.step > hit_step or watch.step >= pace.last_step:
                break
        committed = next(iter(place.committed()), 0)
        injected.fault.end(training)
        end = FaultEnd(at=time.monotonic(), step=training.last_step(), committed=committed)
        life.injected[-1] = replace(injected, end=end)

    def _wait_for_end(self, place: Place, training: Training, life: Life, injected: Injected) -> None:
        """Wait for the end of the command after a fault, and kill everything after the limit."""
        # wait: limit_s of the fault; everything is killed
        while not training.wait(POLL_S):
            training.last_step()  # before newer steps take the place of the oldest ones
            if time.monotonic() > injected.at + injected.limit_s:
                if not _takes_machine(injected):  # else it is judged by what was lost
                    life.problems.append(f"the command hung for {injected.limit_s:.0f} s after {injected.told}")
                place.processes.kill()
                break
        else:
            life.exit_code = training.exit_code()
        life.ended_at = time.monotonic()

    def _settle(self, place: Place, training: Training, life: Life) -> None:
        """Wait until all processes are gone, and kill those that take too long."""
        ended = life.ended_at = life.ended_at or time.monotonic()
        notice = life.ending if life.ending is not None and _takes_machine(life.ending) else None
        is_orphaned = life.ending is not None and life.ending.fault.kills_launcher
        grace_s = training.grace_s if is_orphaned else 0.0  # in which ranks without a launcher leave, after the command
        orphan_s, pusher_s = ORPHAN_S + grace_s, PUSHER_S + grace_s
        pushers_until = ended + pusher_s if notice is None else max(ended, notice.at + notice.limit_s)
        while pids := place.processes.pids():
            now = time.monotonic()
            if late := [pid for pid in pids if now > ended + orphan_s and is_other(pid)]:
                life.problems += [f"{described(pid)} still ran {orphan_s:.0f} s after the command" for pid in late]
            if late or now > pushers_until:
                if notice is None and not late:
                    life.problems.append(f"a pusher process still ran {pusher_s:.0f} s after the command")
                place.processes.kill()
                break
            # wait: POLL_S; it looks again, until the limits above
            time.sleep(POLL_S)
        # wait: 1 s; the command hangs in the kernel
        training.wait(1.0)  # it has ended, and is reaped
        life.gone_at = time.monotonic()

    def _pace(self, life: Life, url: str) -> Pace:
        first, last = min(life.reached_at), max(life.reached_at)
        times = [life.began_at, *life.reached_at.values(), life.ended_at]
        records = [record for rank in read_event_log(open_store(url)).ranks for record in rank.records]
        found = [record.entry.grace_s for record in records if isinstance(record.entry, NoticeSourcesFound)]
        stored = sorted(record.monotonic for record in records if isinstance(record.entry, Committed))
        return Pace(
            last_step=life.reached_step,
            step_s=(life.reached_at[last] - life.reached_at[first]) / max(last - first, 1),
            longest_gap_s=max(after - before for before, after in pairwise(times)),
            longest_unsaved_s=max(after - before for before, after in pairwise([life.began_at, *stored, life.gone_at])),
            grace_s=self._options.grace_s or next((each for each in found if each > 0), DEFAULT_GRACE_S),
        )

    def _run_of(self, place: Place, lives: Sequence[Life], left: Sequence[Planned] = ()) -> Run:
        names = place.names()
        if len(names) > 1:
            raise ConfigError(
                f"the command trains {len(names)} runs, each at a URL of its own: give a command that trains one"
            )
        return Run(
            lives=tuple(lives),
            url=place.url(names[0]) if names else "",
            words=tuple(dict.fromkeys(place.folder.words())),
            left=tuple((each.fault, each.step) for each in left),
        )


class _Watch:
    """Follows the steps of one life, and ends it if none comes for too long."""

    def __init__(self, training: Training, life: Life, stall_s: float) -> None:
        self._training = training
        self._life = life
        self._stall_s = stall_s
        self._changed_at = life.began_at
        self.step = 0
        self.first_step = 0
        """The first step that was seen. After a resume an earlier start has done it, because it is the checkpoint's."""

    def runs(self) -> bool:
        """Look again after :data:`POLL_S`. Return whether the command still runs."""
        # wait: POLL_S; the caller looks again, and no step for stall_s ends the training
        has_ended = self._training.wait(POLL_S)
        now = time.monotonic()
        if (step := self._training.last_step()) != self.step:
            self.first_step = self.first_step or step
            self.step, self._changed_at = step, now
            self._life.reached_at[step] = now
        if has_ended:
            self._life.exit_code, self._life.ended_at = self._training.exit_code(), now
        elif now - self._changed_at > self._stall_s:
            self._life.problems.append(f"no step was done for {self._stall_s:.0f} s, so everything was killed")
            self._training.signal_all(signal.SIGKILL)
            has_ended = True
        return not has_ended


def _takes_machine(injected: Injected) -> bool:
    """Return whether the machine is taken after the limit of the fault."""
    return injected.fault.is_notice and injected.fault.takes_machine


def _is_over(life: Life, pace: Pace) -> bool:
    """Return whether the training came to its end in spite of the last fault."""
    return life.exit_code == 0 and life.reached_step >= pace.last_step


def _log_of(place: Place, since: int) -> LifeLog:
    """Return the facts of the attempts after *since*, by the event log and by what the ranks told the drill."""
    has_notice, left = False, set[bool]()
    refusals, offsets = list[str](), list[float]()
    # The event log may lack how a life began, because the pusher process, which writes the log, may be killed first.
    resumed = sorted(place.resumed(since), key=lambda each: each.attempt)
    for name in place.names()[-1:]:
        for log in read_event_log(open_store(place.url(name))).ranks:
            if log.attempt <= since:
                continue
            offsets += [record.at - record.monotonic for record in log.records]
            for entry in [record.entry for record in log.records]:
                if isinstance(entry, NoticeReceived) and entry.kind != "soft":
                    has_notice = True
                elif isinstance(entry, PushFailing | LocalWriteFailed | SaveAbandoned):
                    refusals.append(entry.reason)
                elif isinstance(entry, Leaving):
                    left.add(entry.durable)
    return LifeLog(
        start_step=next((each.start for each in reversed(resumed) if each.rank == 0), None),
        has_notice=has_notice,
        rejected={step: reason for each in resumed for step, reason in each.rejected.items()},
        committed=next(iter(place.committed()), 0),
        refusals=tuple(dict.fromkeys(refusals)),
        has_left=left == {True},
        jumped_s=max(offsets, default=0.0) - min(offsets, default=0.0),
    )
