"""A finding: what one check saw, how bad that is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "warning", "bad", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of an examination."""

    check: str
    """Name of the check, such as ``store``."""
    verdict: Verdict
    """``good``; ``warning``: work or time may be lost; ``bad``: a preemption will lose work; ``unknown``: not seen."""
    text: str
    """The observation, in a sentence without a full stop."""
    remedy: str | None = None
    """The action that helps. None if there is nothing to do."""
