"""The protocol of a notice source, its announcements, and helpers that turn a provider's times into deadlines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from socket import socket
from typing import Any, Final, Literal, Protocol, runtime_checkable

from ..clock import wall_time

Kind = Literal["hard", "soft"]

MIN_LEFT_S: Final = 10.0
"""
Shortest time in seconds between a notice and the deadline that is assumed. It is used when a notice names a time in the
past, or none. The machine still runs, so either its clock is wrong or the end is late, and a save is worth a try.
"""

TRUSTED_SKEW_S: Final = 2.0
"""Largest difference in seconds between two clocks that is ignored. A ``Date`` header has a resolution of 1 s."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A statement of a notice source that the machine will be taken."""

    source: str
    deadline: float | None
    """Monotonic time at which the machine is taken. None for a soft announcement, which names no time."""
    kind: Kind = "hard"
    """``hard``: the machine will be taken. ``soft``: this is likelier than usual, so a save is worthwhile."""


class NoticeSource(Protocol):
    """
    One service or file that is asked for notices.

    All calls come from one thread, and no call takes longer than a few seconds. After an exception of any kind, the
    source is polled less and less often.
    """

    name: str
    """Name of the source in notices, settings and logs."""

    every_s: float
    """Seconds between two polls."""

    def poll(self) -> Announcement | None:
        """Return the announcement, or None if there is none. A soft announcement is returned once."""
        ...

    @property
    def awaited(self) -> socket | None:
        """A connection on which an answer may arrive at any time. If it does, the source is polled early."""
        ...

    def close(self) -> None:
        """Close open connections. Called by the thread that polls."""
        ...


@runtime_checkable
class Acknowledging(Protocol):
    """A source whose provider takes the machine sooner after an acknowledgment."""

    def acknowledge(self) -> None:
        """Acknowledge the announced end of this machine, if there is one. Any exception may be raised."""
        ...


def deadline_at(end: Any, server_date: str | None, longest_s: float) -> float:
    """
    Return the monotonic time of *end*.

    Args:
        end: Time at which the machine is taken, by the provider's clock, as it was received. If it is missing or
            unreadable, the deadline is in :data:`MIN_LEFT_S` seconds.
        server_date: ``Date`` header of the same answer. It shows by how much this machine's clock is wrong.
        longest_s: The longest notice in seconds that the provider gives. A longer one means a wrong clock.
    """
    try:
        left_s = parse_utc(end).timestamp() - wall_time() - _skew_s(server_date)
    except (TypeError, ValueError, OverflowError):
        left_s = 0.0
    return deadline_in(min(left_s, longest_s))


def deadline_in(left_s: float) -> float:
    """Return the monotonic time in *left_s* seconds, or in :data:`MIN_LEFT_S` seconds if that is later."""
    return time.monotonic() + max(left_s, MIN_LEFT_S)


def parse_utc(text: str) -> datetime:
    """
    Return the time that *text* names, in ISO 8601 (``2017-09-18T08:22:00Z``) or as in HTTP (``Mon, 19 Sep ... GMT``).

    Raises:
        ValueError: The text has neither form.
        TypeError: The value is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a time must be text, not {type(text).__name__}")
    try:
        time_ = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        time_ = parsedate_to_datetime(text)
    return time_ if time_.tzinfo is not None else time_.replace(tzinfo=timezone.utc)


def text_of(document: Any, field: str) -> str:
    """
    Return the string *field* of a JSON object.

    Raises:
        ValueError: *document* is not an object, or *field* is not a string in it.
    """
    value = document.get(field) if isinstance(document, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"no {field!r} in the answer")
    return value


def _skew_s(server_date: str | None) -> float:
    """Return by how many seconds the server's clock is ahead of ours, or 0 if that is unknown or a rounding error."""
    if server_date is None:
        return 0.0
    try:
        skew_s = parse_utc(server_date).timestamp() - wall_time()
    except ValueError:
        return 0.0
    return skew_s if abs(skew_s) > TRUSTED_SKEW_S else 0.0
