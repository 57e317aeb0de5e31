"""The age of the newest committed step, told while nothing gets through to the store."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ..clock import Clock
from ..events import Committed, Event, LocalWriteFailed, PushFailing, SaveAbandoned, SaveDeferred, SharesCounted

logger = logging.getLogger(__name__)

TOLD_AFTER_S: Final = 300.0
"""Seconds without a committed step after which this is an error, and from one such error to the next."""


class CommitAge:
    """
    Logs an error when saves have been failing for minutes, and again every few minutes. It is a subscriber.

    Trouble that passes is worth a warning. This is the time that would be lost if the machine vanished now.

    Args:
        clock: Measures the age.
        counts_shares: Whether a step counts once all ranks have stored it. True on rank 0 of several ranks, whose
            pusher process looks for the shares of the others.
    """

    def __init__(self, clock: Clock, *, counts_shares: bool = False) -> None:
        self._clock = clock
        self._counts_shares = counts_shares
        self._lock = threading.Lock()  # events come from several threads
        self._step: int | None = None
        self._committed_at = clock.monotonic()
        self._told_at = self._committed_at

    def on_event(self, event: Event) -> None:
        """Measure *event*."""
        with self._lock:
            now = self._clock.monotonic()
            match event:
                case Committed(step=step) if not self._counts_shares:
                    self._reset(now, step)
                case SharesCounted(visible_step=step) if step is not None and step != self._step:
                    self._reset(now, step)
                case SharesCounted(step=step, missing_ranks=ranks) if ranks:
                    self._tell(now, f"ranks {', '.join(map(str, ranks))} have not stored their share of step {step}")
                case PushFailing(reason=reason) | SaveAbandoned(reason=reason) | LocalWriteFailed(reason=reason):
                    self._tell(now, reason)
                case SaveDeferred():
                    self._tell(now, "an earlier save is still being pushed")

    def _reset(self, now: float, step: int) -> None:
        self._step, self._committed_at, self._told_at = step, now, now

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
