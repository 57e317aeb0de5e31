"""``every_seconds="auto"``: the interval that wastes least, from what saves cost and how often machines are taken."""

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
"""Until a save has been measured. Short, for a first save is what measures, and protects most."""

SHORTEST_S: Final = 30.0
"""Saving more often gains nothing beside the minutes of a restart, while stores charge for every request."""

PRIOR_MEAN_S: Final = 6 * 3600.0
"""Seconds between preemptions that are expected before any is seen."""

WARNED_MEAN_S: Final = 900.0
"""The same once a soft notice has said that a preemption is near: the shortest mean that Daly computes with."""

NUM_RECENT: Final = 8  # saves whose cost counts

CHANGE: Final = 0.1  # share by which the interval must differ to be worth a change


@dataclass(frozen=True, slots=True)
class Preemptions:
    """How often the machines of this run were taken lately, as seen when this process life began."""

    num_seen: int = 0
    within_s: float = 0.0
    """Seconds in which that was, up to then."""

    def mean_s(self, alive_s: float) -> float:
        """
        Return the seconds to expect between two, *alive_s* into this life.

        The prior counts as one preemption seen, so that neither the first one nor a long quiet start decides alone.
        """
        return (PRIOR_MEAN_S + self.within_s + alive_s) / (1 + self.num_seen)


class AutoInterval:
    """
    Listens to the events of its rank and says when the interval between saves should change. Thread-safe.

    Args:
        preemptions: What is known from earlier lives.
        clock: Says how long this life lasts.
        at_most_s: Seconds between two saves that the user has asked for: only shortened. None: nothing was asked.
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
        """Take in that a preemption is near. The interval follows with the next event."""
        self._is_warned = True

    def observe(self, event: Event) -> IntervalChanged | None:
        """Take in *event*. Return the change that follows from it, or None."""
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
        interval_s = min(max(daly_interval_s(stall_s, mean_s), push_s, SHORTEST_S), self._at_most_s)
        is_small = push_s <= before_s and abs(interval_s - before_s) < CHANGE * before_s
        if is_small or interval_s == before_s:
            return None
        self.interval_s = interval_s
        return IntervalChanged(
            interval_s=interval_s, before_s=before_s, stall_s=stall_s, push_s=push_s, mean_between_preemptions_s=mean_s
        )
