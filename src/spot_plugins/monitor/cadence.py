"""The expected time between saves, from the settings, the measured steps and what ``auto`` has chosen."""

from __future__ import annotations

import math
import time
from typing import Final

from ..eventlog.watchers import Watched
from ..events import Event, IntervalChanged

UNKNOWN: Final = 0.0


class Cadence:
    """
    Tells how many seconds the next save is expected after the last one.

    Args:
        watched: The session.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        every_s = watched.config.every_s
        self._every_s = every_s if isinstance(every_s, float) else None
        self._began: tuple[float, int] | None = None

    def begin(self, step: int | None) -> None:
        """Take note that training begins after *step*."""
        self._began = time.monotonic(), step or 0

    def on_event(self, event: Event) -> None:
        """Take over a changed interval."""
        if isinstance(event, IntervalChanged) and math.isfinite(event.interval_s):
            self._every_s = event.interval_s

    def interval_s(self) -> float:
        """Return the expected seconds, :data:`UNKNOWN` if they are not known yet."""
        known = [] if self._every_s is None else [self._every_s]
        every_steps, began = self._watched.config.every_steps, self._began
        if every_steps is not None and began is not None:
            num_steps = (self._watched.reached() or 0) - began[1]
            if num_steps > 0:
                known.append(every_steps * (time.monotonic() - began[0]) / num_steps)
        return min(known, default=UNKNOWN)
