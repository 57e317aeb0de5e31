"""The interval of ``every_seconds="auto"``, from the cost of saves and the rate of preemptions."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from ..events import Committed, Event, IntervalChanged, Staged
from .daly import daly_interval_s

FIRST_INTERVAL_S: Final = 60.0
"""Interval in seconds until a save has been measured. It is short, because the first save protects most."""

SHORTEST_S: Final = 30.0
"""Shortest interval in seconds. Shorter ones gain nothing, because a restart takes minutes and requests cost money."""

LONGEST_S: Final = 1800.0
"""Longest interval in seconds, unless a push takes longer. Losing more than that is not worth what it saves."""

PRIOR_MEAN_S: Final = 6 * 3600.0
"""Expected seconds between preemptions, before any is seen."""

WARNED_MEAN_S: Final = 900.0
"""Longest expected seconds between preemptions after a soft notice."""

NUM_RECENT: Final = 8  # number of saves whose cost counts

CHANGE: Final = 0.1  # smallest relative change of the interval that is applied


@dataclass(frozen=True, slots=True)
class Preemptions:
    """The recent preemptions of this run, as known at the start of this attempt."""

    num_seen: int = 0
    within_s: float = 0.0
    """Seconds before the start of this attempt in which they happened."""

    def mean_s(self, elapsed_s: float) -> float:
        """
        Estimate the mean seconds between two preemptions, *elapsed_s* seconds after the start of this attempt.

        The prior counts as one preemption, so that neither the first one nor a long quiet start decides alone.
        """
        return (PRIOR_MEAN_S + self.within_s + elapsed_s) / (1 + self.num_seen)


class AutoInterval:
    """
    Derives the interval between saves from the events of its rank. Thread-safe.

    Args:
        preemptions: The preemptions of earlier attempts.
        clock: Measures the duration of this attempt.
        at_most_s: Longest interval in seconds, if the user has set one. None: there is no such limit.
    """

    def __init__(self, preemptions: Preemptions, clock: Clock, at_most_s: float | None = None) -> None:
        self._preemptions = preemptions
        self._clock = clock
        self._started = clock.monotonic()
        self._lock = threading.Lock()
        self._stalls_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._pushes_s: deque[float] = deque(maxlen=NUM_RECENT)
        self._at_most_s = math.inf if at_most_s is None else at_most_s
        self._is_warned = False
        self.interval_s = FIRST_INTERVAL_S if at_most_s is None else at_most_s
        """Seconds between two saves."""

    def warn(self) -> None:
        """Assume that a preemption is near. The interval changes with the next event."""
        self._is_warned = True

    def observe(self, event: Event) -> IntervalChanged | None:
        """Measure *event*. Return the change of the interval that results, or None."""
        with self._lock:
            match event:
                case Staged(trigger="steps" | "seconds" | "soft" | "explicit", stall_s=stall_s):
                    self._stalls_s.append(stall_s)
                case Committed(push_s=push_s):
                    self._pushes_s.append(push_s)
                case _:
                    return None
            return self._update() if self._stalls_s and self._pushes_s else None

    def _update(self) -> IntervalChanged | None:
        stall_s = sum(self._stalls_s) / len(self._stalls_s)
        push_s = max(self._pushes_s)
        mean_s = self._preemptions.mean_s(self._clock.monotonic() - self._started)
        if self._is_warned:
            mean_s = min(mean_s, WARNED_MEAN_S)
        before_s = self.interval_s
        wanted_s = min(daly_interval_s(stall_s, mean_s), LONGEST_S)
        interval_s = min(max(wanted_s, push_s, SHORTEST_S), self._at_most_s)
        is_small = push_s <= before_s and abs(interval_s - before_s) < CHANGE * before_s
        if is_small or interval_s == before_s:
            return None
        self.interval_s = interval_s
        return IntervalChanged(
            interval_s=interval_s, before_s=before_s, stall_s=stall_s, push_s=push_s, mean_between_preemptions_s=mean_s
        )
