"""The shares of other ranks that the pusher process was handed, because these ranks have ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import TypeAlias

from .. import events
from ..events import Event

Outcome: TypeAlias = "events.ShareFinished | events.ShareNotFinished"


class OtherShares:
    """
    Record of one such share at a time. Its buffer is not written to before the outcome is known.

    Every method is safe on any thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._share: tuple[int, int] | None = None  # step and rank
        self._holder: Hashable = None
        self._outcome: Outcome | None = None

    def begin(self, step: int, rank: int, holder: Hashable) -> None:
        """Record that the share of *rank* of *step* goes to the process *holder*."""
        with self._changed:
            self._share, self._holder, self._outcome = (step, rank), holder, None

    def on_event(self, event: Event) -> None:
        """Record an event of the pusher process."""
        if isinstance(event, events.ShareFinished | events.ShareNotFinished):
            with self._changed:
                if (event.step, event.rank) == self._share:
                    self._outcome = event
                    self._changed.notify_all()

    def lose(self, holder: Hashable) -> None:
        """Record the end of the process *holder*. The share that it had in hand has no outcome."""
        with self._changed:
            if self._holder is holder and self._outcome is None:
                self._share = None
                self._changed.notify_all()

    def wait(self, deadline: float) -> Outcome | None:
        """
        Wait for the outcome until *deadline* (monotonic). Return None if there is none.

        Raises:
            LostError: The process has ended before.
        """
        with self._changed:
            left_s = max(0.0, deadline - time.monotonic())
            # wait: the deadline of the caller; the process continues
            self._changed.wait_for(lambda: self._outcome is not None or self._share is None, left_s)
            if self._outcome is None and self._share is None:
                raise LostError
            return self._outcome


class LostError(Exception):
    """The pusher process has ended with a share in hand. Another one can be given the share."""
