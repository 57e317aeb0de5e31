"""The trigger of periodic saves: after a number of steps or seconds, whichever comes first."""

from __future__ import annotations

from typing import Literal

from ..clock import Clock

Trigger = Literal["steps", "seconds", "soft", "notice", "explicit", "end", "pause"]
"""Reason to save a step."""

PeriodicReason = Literal["steps", "seconds", "soft"]
"""Reason for a periodic save, without a hard notice."""

AgreedReason = Literal["steps", "seconds", "soft", "notice"]
"""Reason for all ranks to save one step together."""


class PeriodicTrigger:
    """
    Counts steps and seconds since the last save. A save for any reason resets both counts.

    Only rank 0 asks its trigger, so the ranks cannot disagree. The training thread owns the object. Any thread may call
    :meth:`hasten` and set ``every_seconds``.
    """

    def __init__(self, every_steps: int | None, every_seconds: float | None, clock: Clock) -> None:
        self._every_steps = every_steps
        self.every_seconds = every_seconds
        """Seconds from one save to the next. None if time does not count. Any thread may set it."""
        self._clock = clock
        self._hastened = False
        self.was_hastened = False
        """True after the first soft notice."""
        self._last_step = 0
        self._last_at = clock.monotonic()

    def reset(self, step: int) -> None:
        """Count steps from *step*, and seconds from now."""
        if step > self._last_step:  # otherwise nothing new was saved, as in the resume of a first attempt
            self._hastened = False
        self._last_step = step
        self._last_at = self._clock.monotonic()

    def hasten(self) -> None:
        """Make a save due now, because of a soft notice."""
        self._hastened = self.was_hastened = True

    def due(self, step: int) -> PeriodicReason | None:
        """Return the reason to save at *step*, or None if no save is due."""
        if self.steps_left(step) <= 0:
            return "steps"
        if self._hastened:
            return "soft"
        every_seconds = self.every_seconds
        if every_seconds is not None and self._clock.monotonic() - self._last_at >= every_seconds:
            return "seconds"
        return None

    def steps_left(self, step: int) -> float:
        """Return the number of steps after *step* until a save is due by steps. Infinity if steps do not count."""
        if self._every_steps is None:
            return float("inf")
        return self._last_step + self._every_steps - step
