"""The price of a resume that fetches batches again, measured while it does."""

from __future__ import annotations

import logging
from typing import Final

from ..clock import Clock, SystemClock

logger = logging.getLogger(__name__)

FIRST_S: Final = 5.0
"""Seconds after which the price is told. A resume that has fetched everything before that says nothing more."""

EVERY_S: Final = 60.0
"""Seconds between two lines after that."""


class Price:
    """
    The seconds that it takes to fetch *total* batches again. It begins when it is made.

    Args:
        total: Batches to fetch.
        clock: Time.
    """

    def __init__(self, total: int, clock: Clock | None = None) -> None:
        self._total = total
        self._clock = clock or SystemClock()
        self._started = self._clock.monotonic()
        self._next_line_at = self._started + FIRST_S

    def fetched(self, number: int) -> None:
        """Take note that *number* batches of all were fetched, and tell the price if that takes long."""
        now = self._clock.monotonic()
        took_s, is_done = now - self._started, number == self._total
        if now < self._next_line_at and not (is_done and took_s >= FIRST_S):
            return
        self._next_line_at = now + EVERY_S
        if is_done:
            logger.warning("fetching %d batches again took %.0f s", number, took_s)
            return
        left_s = took_s / number * (self._total - number)
        logger.warning(
            "fetching %d batches again: %d in %.0f s, so about %.0f s are left", self._total, number, took_s, left_s
        )
