"""When a periodic save is due: after so many steps OR so many seconds, whichever comes first."""

from __future__ import annotations

from typing import Literal

from ..clock import Clock

Trigger = Literal["steps", "seconds", "soft", "notice", "explicit", "end", "pause"]
"""Why a step is saved."""

PeriodicReason = Literal["steps", "seconds", "soft"]
"""Why a save is due while there is no notice of an end."""

AgreedReason = Literal["steps", "seconds", "soft", "notice"]
"""Why all ranks save one step together."""


class PeriodicTrigger:
    """
    Counts steps and seconds since the last save. A save for any reason resets both.

    Only rank 0 asks it, so ranks can never differ. The training thread owns it; any may call :meth:`hasten`, and set
    ``every_seconds``.
    """

    def __init__(self, every_steps: int | None, every_seconds: float | None, clock: Clock) -> None:
        self._every_steps = every_steps
        self.every_seconds = every_seconds
        """Seconds from one save to the next, None for not on time. Any thread may set it."""
        self._clock = clock
        self._hastened = False
        self.was_hastened = False
        """Whether there ever was a soft notice."""
        self._last_step = 0
        self._last_at = clock.monotonic()

    def reset(self, step: int) -> None:
        """Count from *step* and from now on."""
        if step > self._last_step:  # else nothing new was saved, as in a first life's resume
            self._hastened = False
        self._last_step = step
        self._last_at = self._clock.monotonic()

    def hasten(self) -> None:
        """Make a save due now, because of a soft notice."""
        self._hastened = self.was_hastened = True

    def due(self, step: int) -> PeriodicReason | None:
        """Return which of them is due at *step*, or None."""
        if self.steps_left(step) <= 0:
            return "steps"
        if self._hastened:
            return "soft"
        every_seconds = self.every_seconds
        if every_seconds is not None and self._clock.monotonic() - self._last_at >= every_seconds:
            return "seconds"
        return None

    def steps_left(self, step: int) -> float:
        """Return how many steps after *step* the step trigger is due; infinity without one."""
        if self._every_steps is None:
            return float("inf")
        return self._last_step + self._every_steps - step
