"""The age of the newest committed step, told while nothing gets through to the store."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ..clock import Clock
from ..events import Committed, Event, LocalWriteFailed, PushFailing, SaveAbandoned, SaveDeferred

logger = logging.getLogger(__name__)

TOLD_AFTER_S: Final = 300.0
"""Seconds without a committed step after which this is an error, and from one such error to the next."""


class CommitAge:
    """
    Logs an error when saves have been failing for minutes, and again every few minutes. It is a subscriber.

    Trouble that passes is worth a warning. This is the time that would be lost if the machine vanished now.

    Args:
        clock: Measures the age.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # events come from several threads
        self._step: int | None = None
        self._committed_at = clock.monotonic()
        self._told_at = self._committed_at

    def on_event(self, event: Event) -> None:
        """Measure *event*."""
        with self._lock:
            now = self._clock.monotonic()
            match event:
                case Committed(step=step):
                    self._step, self._committed_at, self._told_at = step, now, now
                case PushFailing(reason=reason) | SaveAbandoned(reason=reason) | LocalWriteFailed(reason=reason):
                    self._tell(now, reason)
                case SaveDeferred():
                    self._tell(now, "an earlier save is still being pushed")

    def _tell(self, now: float, reason: str) -> None:
        if now - self._told_at < TOLD_AFTER_S:
            return
        self._told_at = now
        since = "the start" if self._step is None else f"step {self._step}"
        logger.error(
            "nothing has been stored for %.0f minutes, since %s; it would be lost with this machine: %s",
            (now - self._committed_at) / 60,
            since,
            reason,
        )
