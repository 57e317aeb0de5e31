"""What every source of notices is: it is asked again and again, by one thread, and never harms the training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from socket import socket
from typing import Any, Final, Literal, Protocol, runtime_checkable

Kind = Literal["hard", "soft"]

MIN_LEFT_S: Final = 10.0
"""
What is planned for when a notice names an end that is past, or none. The machine is still there, so its clock is
wrong, or the end is late; either way trying is better than giving up.
"""

TRUSTED_SKEW_S: Final = 2.0
"""How far our clock may differ from the metadata server's, whose answers are dated to the second."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A source says that the machine will be taken."""

    source: str
    deadline: float | None
    """Monotonic time at which it is taken. None when nobody can know: a soft one."""
    kind: Kind = "hard"
    """``hard``: it will be taken. ``soft``: it is likelier than usual; saving is wise, leaving is not needed."""


class NoticeSource(Protocol):
    """
    One way to learn of an end. One thread calls it; no call takes longer than a few seconds.

    It may fail in any way with an exception: then it is asked again later, less and less often.
    """

    name: str
    """What notices, settings and logs call it."""

    every_s: float
    """Seconds between two polls."""

    def poll(self) -> Announcement | None:
        """Return what is announced; None while all is clear. A soft announcement is returned once."""
        ...

    @property
    def awaited(self) -> socket | None:
        """A connection on which an answer may come at any time: then it is worth a poll before its time."""
        ...

    def close(self) -> None:
        """Let go of what is open. Called by the same thread."""
        ...


@runtime_checkable
class Acknowledging(Protocol):
    """A source whose provider takes the machine sooner once it is told that nothing is left to do."""

    def acknowledge(self) -> None:
        """Tell the provider, if it has announced the end of this machine. May fail in any way with an exception."""
        ...


def deadline_at(end: Any, server_date: str | None, longest_s: float) -> float:
    """
    Return the monotonic time of *end*.

    Args:
        end: When the machine is taken, by the provider's clock, as it came. Unreadable or none: soon.
        server_date: ``Date`` header of the answer that said so. It shows by how much this machine's clock is wrong.
        longest_s: The longest notice that the provider gives; more can only be a wrong clock.
    """
    try:
        left_s = parse_utc(end).timestamp() - time.time() - _skew_s(server_date)
    except (TypeError, ValueError, OverflowError):
        left_s = 0.0
    return deadline_in(min(left_s, longest_s))


def deadline_in(left_s: float) -> float:
    """Return the monotonic time in *left_s* seconds, but in no less than :data:`MIN_LEFT_S`."""
    return time.monotonic() + max(left_s, MIN_LEFT_S)


def parse_utc(text: str) -> datetime:
    """
    Return the time that *text* names: ISO 8601 (``2017-09-18T08:22:00Z``) or that of HTTP (``Mon, 19 Sep ... GMT``).

    Raises:
        ValueError: It is neither.
        TypeError: It is no text.
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
    Return *field* of a JSON object, a string.

    Raises:
        ValueError: It is no object, or has no such string.
    """
    value = document.get(field) if isinstance(document, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"no {field!r} in the answer")
    return value


def _skew_s(server_date: str | None) -> float:
    """Return how many seconds the server's clock is ahead of ours; 0 if that is not known, or within a rounding."""
    if server_date is None:
        return 0.0
    try:
        skew_s = parse_utc(server_date).timestamp() - time.time()
    except ValueError:
        return 0.0
    return skew_s if abs(skew_s) > TRUSTED_SKEW_S else 0.0
