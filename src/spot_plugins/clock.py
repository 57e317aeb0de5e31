"""Time as a value that tests can replace."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """The two clocks that the code reads. It never sleeps."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment. They never decrease. For durations and deadlines."""
        ...

    def utc(self) -> datetime:
        """Return the wall-clock time in UTC, with its time zone. For people to read, never for decisions."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def monotonic(self) -> float:
        """Return :func:`time.monotonic`, which is the same in all processes of a Linux machine."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Return the current UTC time."""
        return datetime.now(timezone.utc)
