"""The periodic trigger of this rank, and the changes of its interval."""

from __future__ import annotations

import json
import logging
import math
from datetime import datetime
from typing import Final

from ..clock import Clock
from ..config import SpotConfig
from ..errors import StoreError
from ..events import Event, EventBus
from ..format.attempts import newest_attempt, read_claim
from ..store import ObjectStore
from .auto import AutoInterval, Preemptions
from .triggers import PeriodicTrigger

logger = logging.getLogger(__name__)

NUM_ATTEMPTS: Final = 10
"""Number of recent attempts that show the rate of preemptions. More are steadier, and fewer are more recent."""

LONGEST_ATTEMPT_S: Final = 24 * 3600.0
"""Longest time in seconds that one earlier attempt counts for. The clock of its machine may have been years off."""


class Pacer:
    """
    Holds the periodic trigger, and adapts its interval to the events of this rank.

    Args:
        config: The steps or seconds between saves.
        rank: The number of this process. Only rank 0 is asked when a save is due, so only rank 0 measures.
        preemptions: The interruptions of earlier attempts, for ``every_seconds="auto"``.
        clock: The clock of the time trigger.
        bus: Gets the changes of the interval.
    """

    def __init__(self, config: SpotConfig, rank: int, preemptions: Preemptions, clock: Clock, bus: EventBus) -> None:
        self._is_asked = rank == 0
        self._clock = clock
        self._bus = bus
        self._is_warned = False
        self._auto: AutoInterval | None = None
        every_seconds = config.every_s
        if every_seconds == "auto":
            every_seconds = None
            if rank == 0:
                self._auto = AutoInterval(preemptions, clock)
                every_seconds = self._auto.interval_s
        self.trigger = PeriodicTrigger(config.every_steps, every_seconds, clock)
        """The trigger that rank 0 asks at the end of each step."""

    def on_event(self, event: Event) -> None:
        """
        Measure *event*, and emit the change of the interval that results. Thread-safe.

        After a soft notice the interval of any setting may get shorter. If saves were due by steps only, they become
        due by time too.
        """
        if self._is_asked and self.trigger.was_hastened and not self._is_warned:
            self._is_warned = True
            if self._auto is None:
                self._auto = AutoInterval(Preemptions(), self._clock, self.trigger.every_seconds or math.inf)
            self._auto.warn()
        if self._auto is None or (change := self._auto.observe(event)) is None:
            return
        logger.info("saving every %.0f s from now on, after every %.0f s before", change.interval_s, change.before_s)
        self.trigger.every_seconds = change.interval_s
        self._bus.emit(change)


def recent_preemptions(store: ObjectStore, attempt: int, clock: Clock) -> Preemptions:
    """
    Return the recent preemptions of the run, from the start times of its last attempts, with one request to *store*.

    Every end of an attempt counts as a preemption, even if a user ended it. Time between two attempts counts too. No
    preemptions are known if the store does not answer.
    """
    num_seen = min(attempt - 1, NUM_ATTEMPTS)
    if num_seen == 0:
        return Preemptions()
    try:
        started_at = json.loads(read_claim(store, attempt - num_seen))["started_at"]
        within_s = (clock.utc() - datetime.fromisoformat(started_at)).total_seconds()
    except (StoreError, KeyError, TypeError, ValueError) as error:
        logger.warning("the preemptions of earlier attempts are not known, so the prior is used: %s", error)
        return Preemptions()
    within_s = min(max(within_s, 0.0), num_seen * LONGEST_ATTEMPT_S)  # the clocks of two machines differ
    return Preemptions(num_seen, within_s)


def preemptions_until_now(store: ObjectStore, clock: Clock) -> Preemptions:
    """
    Return the recent preemptions of a run whose newest attempt has ended.

    Raises:
        StoreError: The store does not answer.
    """
    return recent_preemptions(store, 1 + newest_attempt(store), clock)
