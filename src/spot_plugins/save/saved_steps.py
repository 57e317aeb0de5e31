"""Which steps one process life has saved, and how its last one is made durable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import SpotError, StoreError
from ..push import Pusher
from ..push.lifecycle import StepState
from ..schedule import Trigger
from .saver import Saver, StagedStep

logger = logging.getLogger(__name__)

RECHECK_S: Final = 0.5
"""How often the last wait looks whether an earlier end has become known."""


class SavedSteps:
    """
    Saves no step twice, and holds the one that a pause begins with.

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
        """Say which step training goes on behind."""
        self.last = step

    def has(self, step: int) -> bool:
        """Whether *step* is stored or on its way. Only then must it not be saved again: it may be visible."""
        return step == self.last and not self._pusher.abandoned(step)

    def save(self, step: int, trigger: Trigger) -> bool:
        """Save *step* unless it is saved. Return whether it was not. Raises as :meth:`~.save.saver.Saver.save`."""
        if self.has(step):
            return False
        self._saver.save(step, trigger, time.monotonic() + self._grace_s)
        self.last = step
        return True

    def hold(self, step: int) -> None:
        """Keep the state of *step* in memory, once nothing is being copied: in a pause, weights may be swapped."""
        if not self.has(step):
            try:
                self._held = self._saver.stage(step, "pause", deadline=0.0)
            except StoreError:  # training never waits for the store, not even here
                logger.warning("two saves are still on their way: a notice in this pause cannot save %s", step)

    def release(self) -> None:
        """Let go of the state that :meth:`hold` keeps."""
        self._held = None

    def push_last(self, step: int, leave_by: Callable[[], float], *, is_paused: bool) -> bool:
        """
        Push *step* unless that is done, and wait until *leave_by* (monotonic), which is asked again and again.

        Returns:
            Whether the last saved step is stored.
        """
        try:
            if not self.has(step):
                self._save_last(step, leave_by(), is_paused)
                self.last = step
        except SpotError as error:
            logger.error("step %s could not be saved before leaving: %s", step, error)
        if (last := self.last) is None:
            return False
        while not self._pusher.settled(last) and (now := time.monotonic()) < (until := leave_by()):
            self._pusher.wait_settled(last, min(until, now + RECHECK_S))
        return self._pusher.wait_settled(last, 0.0) in (StepState.COMMITTED, None)

    def _save_last(self, step: int, deadline: float, is_paused: bool) -> None:
        if self._held is not None:
            self._saver.push(self._held)
        elif is_paused:
            raise StoreError("put", "", "it was not staged before the pause, and weights may be swapped since", False)
        else:
            self._saver.save(step, "notice", deadline)
