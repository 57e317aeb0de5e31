"""The notice that a machine will be taken, as the ranks pass it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

LEAVE_SHARE: Final = 0.1
"""Share of the time between a notice and its deadline that is kept for leaving itself: raising, teardown, exit."""

MAX_LEAVE_S: Final = 3.0
"""Upper limit of that time, in seconds."""

EXIT_SHARE: Final = 1 / 3
"""Share of that time that is left for the exit if a last save takes longer than planned."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine of at least one rank will be taken."""

    source: str
    deadline: float
    """Time at which the machine is taken (monotonic), as far as this rank knows."""
    margin_s: float = 0.0
    """Seconds before the deadline that are kept for leaving itself."""
    at_once: bool = True
    """True if all leave after their next step. Otherwise training continues until near the deadline."""

    @property
    def leave_by(self) -> float:
        """The time (monotonic) at which everything must be stored, by the plan."""
        return self.deadline - self.margin_s

    @property
    def wait_until(self) -> float:
        """The time (monotonic) until which a last save that takes longer than planned is waited for."""
        return self.deadline - EXIT_SHARE * self.margin_s


def notice_of(source: str, deadline: float, left_s: float, *, at_once: bool) -> Notice:
    """Return the notice by *source* that comes *left_s* seconds before its *deadline* (monotonic)."""
    return Notice(source, deadline, min(LEAVE_SHARE * max(0.0, left_s), MAX_LEAVE_S), at_once)


def merge(known: Notice | None, notice: Notice) -> Notice:
    """Return one notice for both: the earlier deadline, and at once if either is. *known* itself if nothing is new."""
    if known is None:
        return notice
    first = notice if notice.deadline < known.deadline else known
    at_once = known.at_once or notice.at_once
    return first if first.at_once == at_once else replace(first, at_once=at_once)
