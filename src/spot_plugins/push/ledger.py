"""Record of the steps of one rank and of the shared buffers that hold them. Pure: no process, no socket, no file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from .. import events
from ..events import Event
from .lifecycle import StepLifecycle, StepState
from .messages import FrozenUse, PushJob, StoredFrozen
from .other_shares import OtherShares

MAX_TRIES: Final = 2
"""Pusher processes that one step is handed to. A step that has ended two of them may be the cause."""


class Lent(Protocol):
    """A shared buffer that the pusher process maps."""

    fd: int
    num_bytes: int


class Submission(NamedTuple):
    """A staged step, complete for one pusher process."""

    job: PushJob
    buffers: Mapping[int, Lent]
    frozen: StoredFrozen | None
    """Description of the stored frozen blobs that the job refers to. None if it refers to none."""


class Lost(NamedTuple):
    """Consequences of the end of a pusher process."""

    again: int | None
    """The step to hand to another process. None if there is no such step."""
    abandoned: tuple[int, ...]
    """Steps that will not be committed."""
    buffers: frozenset[int]
    """Buffers to release, once the end of their steps has been announced."""


@dataclass(slots=True)
class _Entry:
    """One step, from its announcement on."""

    lifecycle: StepLifecycle
    job: PushJob | None = None
    """The staged step, from its acceptance until its end."""
    buffers: Mapping[int, Lent] = field(default_factory=dict)
    is_intact: bool = True
    """True if the memory of all its buffers is still open in this process."""
    holder: Hashable = None
    """The process that the step was handed to last."""
    num_tries: int = 0


class Ledger:
    """
    Steps, each with its state, and the buffers that the pusher still reads. Every method is safe on any thread.

    A buffer is held from the announcement of its step until the pusher process has released it. While it is held,
    nobody writes to it, so a step that its process has lost can be handed to another one.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        """The lock of all methods. It is notified of every change."""
        self.newest_committed: int | None = None
        """The newest step of which the share of this rank is stored. None if there is none."""
        self.newest_whole: int | None = None
        """The newest step that the shares of all ranks are stored of, as far as rank 0 has seen it. None on others."""
        self.other_shares = OtherShares()
        """The shares of other ranks, which are apart, so that the share of this rank stays what it is."""
        self._steps: dict[int, _Entry] = {}
        self._handed_over: set[int] = set()
        self._held: dict[int, int] = {}  # buffers, and the steps in them
        self._frozen: StoredFrozen | None = None
        self._lost_frozen = 0  # number of the set that the store has lost
        self._is_failing = False
        self._is_superseded = False

    def announce(self, step: int, buffers: Iterable[int]) -> None:
        """Record that *step* is being copied into *buffers*."""
        with self.changed:
            self._steps[step] = _Entry(StepLifecycle(step))
            self._held |= dict.fromkeys(buffers, step)

    def accept(self, job: PushJob, buffers: Mapping[int, Lent]) -> None:
        """Record that the step of *job* lies in *buffers*, complete. It need not have been announced."""
        with self.changed:
            entry = self._steps.get(job.step)
            if entry is None or entry.lifecycle.has_ended:
                entry = self._steps[job.step] = _Entry(StepLifecycle(job.step))
            entry.lifecycle.move(StepState.PUSHING)
            entry.job, entry.buffers = job, buffers
            self._held |= dict.fromkeys(buffers, job.step)

    def hand_over(self, step: int, holder: Hashable) -> Submission | None:
        """
        Record that *step* goes to the process *holder*.

        Returns:
            The message to send. None if it cannot be completed: a buffer was closed, or the frozen weights that the
            step refers to are not stored.
        """
        with self.changed:
            entry = self._steps[step]
            job = entry.job
            if job is None or not entry.is_intact:
                return None
            frozen = self._frozen if job.frozen_use is FrozenUse.REFERS else None
            if job.frozen_use is FrozenUse.REFERS and (frozen is None or frozen.number != job.frozen_set):
                return None
            entry.holder = holder
            entry.num_tries += 1
            is_again = step in self._handed_over
            self._handed_over.add(step)
            sent = replace(job, again=is_again, buffers=tuple(entry.buffers))
            return Submission(sent, entry.buffers, frozen)

    def lose(self, holder: Hashable) -> Lost:
        """
        Record the end of the process *holder*, and decide what becomes of the steps that it had.

        The newest one is to be handed over again, if its buffers are intact, if it has not been before, and if no newer
        attempt has taken over the run. All others are abandoned. Steps that are still being copied are not affected.
        """
        with self.changed:
            pushed = [step for step, entry in self._steps.items() if self._is_pushed_by(entry, holder)]
            again = max(pushed, default=None)
            if again is not None and not self._may_try_again(self._steps[again]):
                again = None
            abandoned = tuple(step for step in pushed if step != again)
            for step in abandoned:
                self._end(step, StepState.ABANDONED)
            self._is_failing = False
            left = {step for step, entry in self._steps.items() if entry.holder == holder and step != again}
            self.changed.notify_all()
            return Lost(again, abandoned, frozenset(buffer for buffer, step in self._held.items() if step in left))

    def abandon(self, step: int) -> None:
        """Record that *step* will not come, and release its buffers."""
        with self.changed:
            self._end(step, StepState.ABANDONED)
            self._held = {buffer: held for buffer, held in self._held.items() if held != step}
            self.changed.notify_all()

    def release(self, buffers: Iterable[int]) -> None:
        """Record that no process reads *buffers* any more."""
        with self.changed:
            for buffer in buffers:
                self._held.pop(buffer, None)
            self._is_failing = False
            self.changed.notify_all()

    def forget(self, buffer: int) -> None:
        """Record that *buffer* is closed next: no step that lies in it can be handed over again."""
        with self.changed:
            for entry in self._steps.values():
                if buffer in entry.buffers:
                    entry.is_intact = False

    def store_frozen(self, frozen: StoredFrozen) -> None:
        """Record that a set of frozen blobs is stored, so that later steps may refer to it."""
        with self.changed:
            self._frozen = frozen

    def on_event(self, event: Event) -> None:
        """Record an event of the pusher process."""
        with self.changed:
            match event:
                case events.Committed(step=step):
                    self._end(step, StepState.COMMITTED)
                    self.newest_committed = max(step, self.newest_committed or step)
                case events.SharesCounted(visible_step=int(step)):
                    self.newest_whole = step
                case events.SaveAbandoned(step=step):
                    self._end(step, StepState.ABANDONED)
                case events.PushFailing():
                    self._is_failing = True
                case events.Superseded():
                    self._is_superseded = True
                case events.StoreDamaged(key=key, is_repaired=False):
                    if (frozen := self._frozen) is not None and any(each.blob.key == key for each in frozen.blobs):
                        self._lost_frozen = frozen.number  # the next step brings the blobs again
            self.changed.notify_all()

    @property
    def is_superseded(self) -> bool:
        """True if a newer attempt has taken over the run, so that nothing more will be committed."""
        return self._is_superseded

    @property
    def is_busy(self) -> bool:
        """True if a step is on its way and the store takes it. A push that only fails does not count."""
        with self.changed:
            return bool(self._held) and not self._is_failing

    @property
    def num_held(self) -> int:
        """Number of buffers that a step on its way needs."""
        return len(self._held)

    def knows_frozen(self, number: int) -> bool:
        """Return whether the set of frozen blobs of that *number* is stored, and not lost since."""
        with self.changed:
            return self._frozen is not None and self._frozen.number == number != self._lost_frozen

    def holds(self, buffer: int) -> bool:
        """Return whether a step on its way needs *buffer*."""
        with self.changed:
            return buffer in self._held

    def wait_released(self, buffers: set[int], deadline: float, is_made: Callable[[], bool] = lambda: False) -> bool:
        """
        Wait until one of *buffers* is not held, until *is_made* returns true, or until *deadline* (monotonic).

        *is_made* is called at once and after each notification of :attr:`changed`. Return whether the wait ended
        before *deadline*.
        """
        with self.changed:
            left_s = max(0.0, deadline - time.monotonic())
            # wait: the deadline of the caller; the save is deferred
            return self.changed.wait_for(lambda: not buffers <= self._held.keys() or is_made(), timeout=left_s)

    def has_ended(self, step: int) -> bool:
        """Return whether *step* is committed or abandoned. A step that is not recorded has ended as well."""
        with self.changed:
            return step not in self._steps or self._steps[step].lifecycle.has_ended

    def wait_ended(self, step: int, deadline: float) -> StepState | None:
        """Wait until *step* has ended or until *deadline* (monotonic). Return its state, None if it is not recorded."""
        with self.changed:
            # wait: the deadline of the caller; the step is on its way still
            self.changed.wait_for(lambda: self.has_ended(step), timeout=max(0.0, deadline - time.monotonic()))
            return self._steps[step].lifecycle.state if step in self._steps else None

    def _is_pushed_by(self, entry: _Entry, holder: Hashable) -> bool:
        return entry.holder == holder and entry.lifecycle.state is StepState.PUSHING

    def _may_try_again(self, entry: _Entry) -> bool:
        return entry.num_tries < MAX_TRIES and entry.is_intact and not self._is_superseded

    def _end(self, step: int, state: StepState) -> None:
        entry = self._steps[step]
        entry.lifecycle.move(state)
        entry.job, entry.buffers = None, {}  # the description of a large state takes megabytes
