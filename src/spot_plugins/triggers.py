"""When a periodic save is due: after so many steps OR so many seconds, whichever comes first."""

from __future__ import annotations

from typing import Literal

from .clock import Clock

Trigger = Literal["steps", "seconds", "notice", "explicit", "end", "pause"]
"""Why a step is saved."""


class PeriodicTrigger:
    """
    Counts steps and seconds since the last save. A save for any reason resets both.

    Only rank 0 asks it, so ranks can never differ. Not thread-safe but for ``every_seconds``: the training thread
    owns it.
    """

    def __init__(self, every_steps: int | None, every_seconds: float | None, clock: Clock) -> None:
        self._every_steps = every_steps
        self.every_seconds = every_seconds
        """Seconds from one save to the next, None for not on time. Any thread may set it."""
        self._clock = clock
        self._last_step = 0
        self._last_at = clock.monotonic()

    def reset(self, step: int) -> None:
        """Count from *step* and from now on."""
        self._last_step = step
        self._last_at = self._clock.monotonic()

    def due(self, step: int) -> Literal["steps", "seconds"] | None:
        """Return which of the two is due at *step*, or None."""
        if self.steps_left(step) <= 0:
            return "steps"
        every_seconds = self.every_seconds
        if every_seconds is not None and self._clock.monotonic() - self._last_at >= every_seconds:
            return "seconds"
        return None

    def steps_left(self, step: int) -> float:
        """Return how many steps after *step* the step trigger is due; infinity without one."""
        if self._every_steps is None:
            return float("inf")
        return self._last_step + self._every_steps - step
