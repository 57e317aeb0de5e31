"""
The interval between two saves that wastes least: Young's and the exact formula. Daly's is in ``schedule.daly``.

Each interval is the training time from the end of one save to the start of the next one. Two durations of a save have
to be told apart. The *stall* is the time for which training stands still. The *push* is the time until the save is
stored. If the push runs beside training, only the stall decides (Vaidya 1997, IEEE TC 46:942). If training waits for
the push, the stall is the whole save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ..schedule.daly import daly_interval_s

_SERIES: Final = 1e-9
"""Ratio of stall to mean below which Daly's series equals the exact optimum in double precision."""


def young_interval_s(stall_s: float, mean_s: float) -> float:
    """
    Compute ``sqrt(2 C M)`` (Young 1974, CACM 17:530), the first-order interval for a stall far below the mean.

    Args:
        stall_s: C, seconds that training stands still for one save, at least 0 and finite.
        mean_s: M, mean seconds between preemptions of the job, above 0. Infinity if there are none.

    Raises:
        ValueError: An argument is out of range.
    """
    check_durations(stall_s, mean_s)
    return math.inf if math.isinf(mean_s) else math.sqrt(2 * stall_s * mean_s)


def exact_interval_s(stall_s: float, mean_s: float) -> float:
    """
    Compute the exact optimum of Daly's model: ``M (1 + W0(-exp(-1 - C/M)))``, with Lambert's function W0.

    The optimum minimizes :func:`.walltime.wall_per_work`, and depends neither on the restart nor on the push. It solves
    ``1 - t = exp(-t - C/M)`` for ``t = T/M``, by Newton's method from Young's interval. The function is concave and
    falls, so each iteration comes closer from above.

    Args:
        stall_s: C, seconds that training stands still for one save, at least 0 and finite. At 0 the optimum is 0.
        mean_s: M, mean seconds between preemptions of the job, above 0. At infinity the optimum is infinity.

    Raises:
        ValueError: An argument is out of range.
    """
    check_durations(stall_s, mean_s)
    if math.isinf(mean_s) or stall_s < _SERIES * mean_s:
        return daly_interval_s(stall_s, mean_s)
    share = stall_s / mean_s
    now, before = min(1.0, math.sqrt(2 * share)), math.inf
    while now < before:
        slope = math.expm1(-now - share)
        now, before = now + (slope + now) / slope, now
    return before * mean_s


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoLevels:
    """Intervals of two kinds of saves, and the share of the time that they and what is lost between them cost."""

    local_s: float
    """Seconds between two saves to the local disk, from which a crashed process resumes."""
    store_s: float
    """Seconds between two saves to the store, from which a new machine resumes."""
    waste: float
    """Share of the time, to first order and without restarts."""
    waste_of_store_alone: float
    """The same if every save goes to the store."""


def two_level_intervals(
    local_stall_s: float, crash_mean_s: float, store_stall_s: float, preemption_mean_s: float
) -> TwoLevels:
    """
    Compute the intervals of saves to the local disk and to the store (Benoit et al. 2017, IEEE TC 66:1212).

    To first order the levels are independent: ``T = sqrt(2 C M)`` each, and the wastes ``sqrt(2 C / M)`` add up. The
    local disk of a spot machine is lost with it, so it protects against crashes of processes only.

    Args:
        local_stall_s: Stall of a save to the local disk.
        crash_mean_s: Mean seconds between crashes that leave the machine, above 0. Infinity if there are none.
        store_stall_s: Stall of a save to the store.
        preemption_mean_s: Mean seconds between preemptions of the job, above 0. Infinity if there are none.

    Raises:
        ValueError: An argument is out of range.
    """
    both = 1 / crash_mean_s + 1 / preemption_mean_s
    return TwoLevels(
        local_s=young_interval_s(local_stall_s, crash_mean_s),
        store_s=young_interval_s(store_stall_s, preemption_mean_s),
        waste=math.sqrt(2 * local_stall_s / crash_mean_s) + math.sqrt(2 * store_stall_s / preemption_mean_s),
        waste_of_store_alone=math.sqrt(2 * store_stall_s * both),
    )


def check_durations(stall_s: float, mean_s: float) -> None:
    """
    Check the arguments of the formulas.

    Raises:
        ValueError: *stall_s* is negative or not finite, or *mean_s* is not above 0.
    """
    if not 0 <= stall_s < math.inf:
        raise ValueError(f"stall_s={stall_s} must be at least 0 and finite")
    if not mean_s > 0:
        raise ValueError(f"mean_s={mean_s} must be above 0")
