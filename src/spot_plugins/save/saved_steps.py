"""The steps that one attempt has saved, and the last one, which must become durable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import SpotError, StoreError
from ..push import Pusher
from ..push.lifecycle import StepState
from ..ranks import Job
from ..schedule import Trigger
from .saver import NO_MEMORY, Saver
from .staged import StagedStep

logger = logging.getLogger(__name__)

RECHECK_S: Final = 0.5
"""Pause between two looks, in the last wait, whether an earlier end has become known."""

_STORED: Final = (StepState.COMMITTED, None)  # None: not of this attempt, so it was resumed from
_ENDED: Final = (*_STORED, StepState.ABANDONED)


class SavedSteps:
    """
    Remembers which steps were saved, so that none is saved twice, and keeps the state staged at the start of a pause.

    The staged state stays until the next step, because a step may turn out to be worth keeping only after the pause.

    Args:
        saver: Stages steps.
        pusher: Pushes them.
        job: The ranks of the job.
        grace_s: Longest wait of a save for room.
    """

    def __init__(self, saver: Saver, pusher: Pusher, job: Job, grace_s: float) -> None:
        self._saver = saver
        self._job = job
        self._pusher = pusher
        self._grace_s = grace_s
        self._held: StagedStep | None = None
        self._last_staged: StagedStep | None = None
        self._resumed: int | None = None
        self.last: int | None = None
        """The step that was saved last, or resumed from."""
        self.present: int | None = None
        """The step that was reported last, or resumed from. None if there is none yet."""

    def resumed(self, step: int | None) -> None:
        """Record the step from which training continues."""
        self.last = self._resumed = step
        self.present = step

    def describe_stored(self) -> str:
        """
        Return the words for the newest step that this attempt has stored, or has resumed from. On any thread.

        With several ranks only rank 0 knows whether all have stored their shares. The others speak of their own.
        """
        ledger, is_alone = self._pusher.ledger, self._job.world_size == 1
        if self._job.rank != 0 and (share := ledger.newest_committed) is not None:
            return f"this rank has stored its share of step {share}"
        step = (ledger.newest_committed if is_alone else ledger.newest_whole) or self._resumed
        return "nothing is stored yet" if step is None else f"step {step} is the newest one stored"

    def reached(self, step: int) -> None:
        """Record that *step* is done. A state that was held belongs to an earlier step."""
        self.present = step
        self._held = self._last_staged = None

    def has(self, step: int) -> bool:
        """Return whether *step* is stored or on its way. Then it must not be saved again, as it may be visible."""
        return step == self.last and not self._pusher.is_abandoned(step)

    def finish(self, step: int) -> None:
        """Record the end of the training. If *step* is stored, nobody needs its local copies."""
        self._pusher.is_finished = self.has(step) and self._pusher.has_ended(step)

    def save(self, step: int, trigger: Trigger) -> bool:
        """
        Save *step*, unless it is saved already. Raises as :meth:`.Saver.save`.

        With the trigger ``end`` it copies everything before it returns, because no training will use the time.

        If the system has no memory for it, an event says so and training continues.

        Returns:
            Whether it was saved now.
        """
        deadline = time.monotonic() + self._grace_s
        if trigger == "end":
            self._saver.wait_copied(deadline)  # a copy of this step may still fail
        if self.has(step):
            return False
        self.present = step
        self._held = None  # its memory may be used for this save
        try:
            if trigger == "end":
                self._saver.push(self._saver.stage(step, trigger, deadline))
            else:
                self._saver.save(step, trigger, deadline)
        except NO_MEMORY as error:
            self._saver.give_up(step, error)
            return False
        self.last = step
        return True

    def hold(self, step: int) -> None:
        """
        Keep the state of *step* in memory until the next step, because weights may be swapped from now on.

        Nothing must be being copied. A second call for the same step changes nothing.
        """
        self.present = step
        if self._held is not None and self._held.step == step:
            return
        self._held = None
        if not self.has(step):
            try:
                self._held = self._saver.stage(step, "pause", deadline=0.0)
            except StoreError as error:  # training never waits for the store, not even here
                logger.warning("a notice in this pause cannot save step %s: %s", step, error.reason)
            except NO_MEMORY as error:
                logger.warning("there is no memory to save step %s, so a notice in this pause cannot: %s", step, error)

    def release(self) -> None:
        """Let go of the state that :meth:`hold` has kept."""
        self._held = None

    def save_held(self, step: int) -> bool:
        """Save the state of *step* that :meth:`hold` has kept, unless it is saved. Return whether it was saved now."""
        held, self._held = self._held, None
        if held is None or held.step != step or self.has(step):
            return False
        self._saver.push(held)
        self.last = step
        return True

    def push_last(self, step: int, leave_by: Callable[[], float], *, is_paused: bool) -> bool:
        """
        Save *step*, unless it is saved already, and wait until it is stored.

        A pusher process that dies meanwhile is the pusher's concern. Errors are logged.

        Args:
            step: The step that training stands still after.
            leave_by: The end of the wait (monotonic). It is called again and again, because the end may move.
            is_paused: Whether weights may be swapped since :meth:`hold`, so that only the held state can be saved.

        Returns:
            Whether the last saved step is stored.
        """
        self._pusher.hurry()
        _wait(self._saver.wait_copied, leave_by)  # a copy of this step may still fail
        try:
            if not self.has(step):
                self._save_last(step, leave_by(), is_paused)
        except (SpotError, *NO_MEMORY) as error:
            logger.error("step %s could not be saved before leaving: %s", step, error)
        if (last := self.last) is None:
            return False
        _wait(lambda deadline: self._pusher.wait_ended(last, deadline) in _ENDED, leave_by)
        return self._pusher.wait_ended(last, 0.0) in _STORED

    def _save_last(self, step: int, deadline: float, is_paused: bool) -> None:
        if is_paused:
            if not self.save_held(step):
                reason = "it was not copied before the pause, and the weights may have been swapped since"
                raise StoreError("put", "", reason, False)
            return
        self._held = None  # its memory may be used for this save
        self._last_staged = self._saver.stage(step, "notice", deadline, is_last=True)
        self._saver.push(self._last_staged)
        self.last = step

    @property
    def why_no_shares(self) -> str | None:
        """The reason why this rank cannot store what another rank has staged of the last step. None if it can."""
        if (staged := self._last_staged) is None:
            return "the step was saved before the ranks stood still"
        return None if staged.can_be_finished else "no other rank holds all of it"

    def push_share(self, rank: int, deadline: float) -> None:
        """
        Let the pusher store what *rank* has staged of the step of :meth:`push_last`, because that rank has ended.

        Call it only if :attr:`why_no_shares` is None. It waits until *deadline* (monotonic) for memory.

        Raises:
            SpotError, OSError, MemoryError: There is no memory for it.
        """
        assert self._last_staged is not None
        self._pusher.hurry()  # the share of this rank is stored, so its memory must not wait for the local disk
        self._saver.stage_share(self._last_staged, rank, deadline)


def _wait(wait: Callable[[float], bool], until: Callable[[], float]) -> None:
    """Call *wait* with near deadlines until it returns true or until *until*, which may move. Times are monotonic."""
    # wait: RECHECK_S, again and again until the end that the caller names; the step is not stored
    while not wait(min(until(), time.monotonic() + RECHECK_S)) and time.monotonic() < until():
        pass
