"""The plan of a drill: which fault hits after which step."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Final

from ..errors import ConfigError
from .target import Fault

END_S: Final = 1.0
"""Seconds before the end of the training in which no fault is planned, because it would come too late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The training as it runs when it is left alone."""

    last_step: int
    step_s: float
    """Mean seconds of a step."""
    longest_gap_s: float
    """Longest time without a new step, the start of the program included."""
    longest_unsaved_s: float = math.inf
    """Longest time without a step that was stored, the start of the program included."""
    grace_s: float
    """Seconds from a notice until the machine is taken."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, and the step after which it hits."""

    fault: Fault
    step: int


def plan_of(faults: Sequence[Fault], num_faults: int, pace: Pace, chance: random.Random) -> list[Planned]:
    """
    Return *num_faults* faults, which are *faults* in turn. Their steps are drawn, one from each of as many equal parts.

    Raises:
        ConfigError: The training has too few steps.
    """
    last = pace.last_step - max(1, ceil(END_S / max(pace.step_s, 1e-6)))
    if last < num_faults:
        trained_s = pace.last_step * pace.step_s
        raise ConfigError(
            f"the training has {pace.last_step} steps in {trained_s:.1f} s, which are too few for {num_faults} faults: "
            f"give it more steps or longer ones, or fewer faults with --faults"
        )
    parts = [last * index / num_faults for index in range(num_faults + 1)]
    steps = [max(1, round(chance.uniform(low + 0.2 * (high - low), high))) for low, high in pairwise(parts)]
    return [Planned(faults[index % len(faults)], step) for index, step in enumerate(steps)]
