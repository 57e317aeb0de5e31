"""The warning that a notice leaves less time than a save takes."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ..events import Committed, Event, NoticeSourcesFound
from .measurements import Measurements

logger = logging.getLogger(__name__)

NUM_SAVES: Final = 3
"""Saves one after the other that take too long. A single one may have met a busy store."""


class ShortGrace:
    """
    Warns once if saves of this rank take longer than the grace period. It is a subscriber, after *measurements*.

    The step before the notice is then lost whenever the machine is taken, so the user can prepare for that. A grace
    period of 0 s is no reason, because no notice can come then, and another warning says so.
    """

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        self._lock = threading.Lock()  # events come from several threads
        self._grace: NoticeSourcesFound | None = None
        self._num_late = 0

    def on_event(self, event: Event) -> None:
        """Compare the save that *event* is about."""
        with self._lock:
            match event:
                case NoticeSourcesFound() if event.grace_s > 0:
                    self._grace = event
                case Committed() if (grace := self._grace) is not None:
                    needs_s = self._measurements.save_s
                    if needs_s is None or needs_s <= grace.grace_s:
                        self._num_late = 0
                        return
                    self._num_late += 1
                    if self._num_late == NUM_SAVES:
                        self._grace = None
                        self._warn(needs_s, grace)

    def _warn(self, needs_s: float, grace: NoticeSourcesFound) -> None:
        logger.warning(
            "a save takes %.0f s by the last %s of them, and a notice leaves %.0f s (%s). A notice will lose the steps "
            "since the last stored one. Save more often, use a faster store, train on more machines, or raise "
            "grace_seconds if the machine gives more time",
            needs_s,
            NUM_SAVES,
            grace.grace_s,
            grace.limited_by,
        )
