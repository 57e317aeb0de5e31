"""The pace of training, and the saves that rank 0 proposes. It has no threads; its caller holds a lock."""

from __future__ import annotations

import math
from typing import Final

from ..schedule import AgreedReason, PeriodicTrigger
from .messages import ProposalVerdict

MIN_LEAD: Final = 2
LEAD_S: Final = 0.05
"""
Distance of a proposed boundary, in boundaries and in seconds, whichever is more.

It is long enough for the answers, so that no training thread waits for the verdict.
"""

MAX_LEAD_S: Final = 2.0
"""Upper limit of that distance. It doubles each time a rank is busy or past the proposed boundary."""

SAME_WISH_S: Final = 60.0
"""Time in which several wishes to save soon count as one: every rank of a machine learns of the same danger."""


class Pace:
    """
    The pace of this rank's training, and the periodic saves that are due by it.

    Args:
        trigger: Says when a save is due.
    """

    def __init__(self, trigger: PeriodicTrigger) -> None:
        self._trigger = trigger
        self.step = 0
        """The last step that ended."""
        self._ended_at: float | None = None
        self._stride = 1
        self._step_s = 0.0  # of one boundary, lately
        self._lead_s = LEAD_S
        self._num_failed = 0  # proposals since the last save
        self._is_deferred = False
        self._wished_at = -math.inf

    def end_step(self, step: int, now: float) -> None:
        """Record that *step* ended at *now* (monotonic)."""
        if self._ended_at is not None and step > self.step:
            self._stride = step - self.step
            self._step_s = now - self._ended_at
        self.step, self._ended_at = step, now

    def num_ahead(self) -> int:
        """Return how many boundaries ahead all ranks can agree on one."""
        return self._boundaries_in(LEAD_S)

    def wish(self, step: int) -> tuple[int, AgreedReason] | None:
        """Return how many boundaries after *step* the next save is due, and why; None if it is not near."""
        trigger: AgreedReason
        steps_left = self._trigger.steps_left(step)
        lead = self._boundaries_in(self._lead_s)
        if steps_left <= lead * self._stride:
            ahead, trigger = math.ceil(steps_left / self._stride), "steps"
        elif due := self._trigger.due(step):
            ahead, trigger = lead, due
        else:
            return None
        if self._num_failed:
            ahead = max(ahead, min(MIN_LEAD * 2**self._num_failed, self._boundaries_in(MAX_LEAD_S)))
        return ahead, trigger

    def is_due(self, step: int) -> bool:
        """Return whether a save is due at *step* itself."""
        return self._trigger.due(step) is not None

    def defer(self) -> bool:
        """Record that a save that is due must wait. Return whether that is new."""
        is_new, self._is_deferred = not self._is_deferred, True
        return is_new

    def on_verdict(self, verdict: ProposalVerdict) -> None:
        """Propose further ahead after a proposal that failed."""
        self._num_failed += verdict != "save"
        if verdict == "late":  # ranks that do not wait for each other's gradients run further ahead
            self._lead_s = min(2 * self._lead_s, MAX_LEAD_S)

    def on_saved(self, step: int) -> None:
        """Count from *step*, which is being saved."""
        self._is_deferred = False
        self._num_failed = 0
        self._trigger.reset(step)

    def hasten(self, now: float) -> None:
        """Make a save due now (monotonic), unless the same was asked for a short time ago."""
        if now - self._wished_at > SAME_WISH_S:
            self._wished_at = now
            self._trigger.hasten()

    def _boundaries_in(self, seconds: float) -> int:
        """Return how many boundaries training passes in *seconds*, but at least a few."""
        return max(MIN_LEAD, math.ceil(seconds / self._step_s)) if self._step_s else MIN_LEAD
