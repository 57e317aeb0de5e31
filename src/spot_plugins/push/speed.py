"""Speeds at which bytes have lately left the memory of this machine, for plans with a deadline."""

from __future__ import annotations

from typing import Final

HALF_LIFE_S: Final = 30.0
"""Seconds of transfer after which an old measurement counts half."""


class Speed:
    """
    Bytes per second of one way out, with all its parallel transfers together. The newest transfers count most.

    Only transfers that succeeded are recorded, so neither pauses nor failures make a way slow.
    """

    def __init__(self) -> None:
        self._num_bytes = 0.0
        self._seconds = 0.0

    def record(self, num_bytes: int, seconds: float) -> None:
        """Record that *num_bytes* went out within *seconds*."""
        if num_bytes <= 0 or seconds <= 0:
            return
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        self._num_bytes = kept * self._num_bytes + num_bytes
        self._seconds = kept * self._seconds + seconds

    @property
    def bytes_per_s(self) -> float | None:
        """The speed to expect, None before the first record."""
        return self._num_bytes / self._seconds if self._seconds else None
