"""The steps that one attempt has saved, and the last one, which must become durable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import SpotError, StoreError
from ..push import Pusher
from ..push.lifecycle import StepState
from ..schedule import Trigger
from .saver import Saver
from .staged import StagedStep

logger = logging.getLogger(__name__)

RECHECK_S: Final = 0.5
"""Pause between two looks, in the last wait, whether an earlier end has become known."""

_STORED: Final = (StepState.COMMITTED, None)  # None: not of this attempt, so it was resumed from
_ENDED: Final = (*_STORED, StepState.ABANDONED)


class SavedSteps:
    """
    Remembers which steps were saved, so that none is saved twice, and keeps the state staged at the start of a pause.

    Args:
        saver: Stages steps.
        pusher: Pushes them.
        grace_s: Longest wait of a save for room.
    """

    def __init__(self, saver: Saver, pusher: Pusher, grace_s: float) -> None:
        self._saver = saver
        self._pusher = pusher
        self._grace_s = grace_s
        self._held: StagedStep | None = None
        self.last: int | None = None
        """The step that was saved last, or resumed from."""

    def resumed(self, step: int | None) -> None:
        """Record the step from which training continues."""
        self.last = step

    def has(self, step: int) -> bool:
        """Return whether *step* is stored or on its way. Then it must not be saved again, as it may be visible."""
        return step == self.last and not self._pusher.is_abandoned(step)

    def save(self, step: int, trigger: Trigger) -> bool:
        """
        Save *step*, unless it is saved already. Raises as :meth:`.Saver.save`.

        With the trigger ``end`` it copies everything before it returns, because no training will use the time.

        Returns:
            Whether it was saved now.
        """
        deadline = time.monotonic() + self._grace_s
        if trigger == "end":
            self._saver.wait_copied(deadline)  # a copy of this step may still fail
        if self.has(step):
            return False
        if trigger == "end":
            self._saver.push(self._saver.stage(step, trigger, deadline))
        else:
            self._saver.save(step, trigger, deadline)
        self.last = step
        return True

    def hold(self, step: int) -> None:
        """
        Keep the state of *step* in memory until :meth:`release`, because weights may be swapped from now on.

        Nothing must be being copied.
        """
        if not self.has(step):
            try:
                self._held = self._saver.stage(step, "pause", deadline=0.0)
            except StoreError:  # training never waits for the store, not even here
                logger.warning("two saves are still on their way: a notice in this pause cannot save %s", step)

    def save_held(self, step: int) -> None:
        """Save *step* with the state that :meth:`hold` keeps, unless it is saved already or nothing is held."""
        if self._held is not None and not self.has(step):
            self._saver.push(self._held)
            self.last = step
            self._held = None

    def release(self) -> None:
        """Let go of the state that :meth:`hold` has kept."""
        self._held = None

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
        _wait(self._saver.wait_copied, leave_by)  # a copy of this step may still fail
        try:
            if not self.has(step):
                self._save_last(step, leave_by(), is_paused)
        except SpotError as error:
            logger.error("step %s could not be saved before leaving: %s", step, error)
        if (last := self.last) is None:
            return False
        _wait(lambda deadline: self._pusher.wait_ended(last, deadline) in _ENDED, leave_by)
        return self._pusher.wait_ended(last, 0.0) in _STORED

    def _save_last(self, step: int, deadline: float, is_paused: bool) -> None:
        if self._held is not None:
            self._saver.push(self._held)
        elif is_paused:
            raise StoreError("put", "", "it was not staged before the pause, and weights may be swapped since", False)
        else:
            self._saver.push(self._saver.stage(step, "notice", deadline))
        self.last = step


def _wait(wait: Callable[[float], bool], until: Callable[[], float]) -> None:
    """Call *wait* with near deadlines until it returns true or until *until*, which may move. Times are monotonic."""
    while not wait(min(until(), time.monotonic() + RECHECK_S)) and time.monotonic() < until():
        pass
