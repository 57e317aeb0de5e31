"""Time as a value that tests can replace."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """What the code asks about time. Never sleeps."""

    def monotonic(self) -> float:
        """Return seconds that only grow; the zero is arbitrary. For durations and deadlines."""
        ...

    def utc(self) -> datetime:
        """Return the wall clock, aware, in UTC. For people, never for decisions."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return :func:`time.monotonic`, which all processes of a Linux machine share."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Return the current UTC time."""
        return datetime.now(timezone.utc)
