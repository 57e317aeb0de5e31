"""Time as a value that tests can replace, and the one place where the wall clock is read."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import Final, Protocol

DRILL_VARIABLE: Final = "SPOT_PLUGINS_DRILL_CLOCK"
"""Variable with the path of a file that begins with the seconds to add to the clock. Only ``spot drill`` sets it."""


def wall_time() -> float:
    """
    Return the seconds since 1970 by the clock of the machine, which may be set at any time, forward and back.

    For records, for people, and for what another machine says in such times. Never for durations and deadlines.
    """
    return time.time() + _drilled_jump_s()


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
        return datetime.fromtimestamp(wall_time(), timezone.utc)


def _drilled_jump_s() -> float:
    """Return the seconds by which a drill has set the clock of its processes. 0 outside of a drill."""
    if path := os.environ.get(DRILL_VARIABLE):
        with suppress(OSError), open(path, encoding="utf-8") as file:
            return float(file.readline())
    return 0.0
