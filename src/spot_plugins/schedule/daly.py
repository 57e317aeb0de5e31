"""The interval between two saves that wastes least, by Daly's formula."""

from __future__ import annotations

import math


def daly_interval_s(stall_s: float, mean_s: float) -> float:
    """
    Compute the seconds of training between two saves that waste least (Daly 2006, FGCS 22:303).

    The duration of a restart does not count, because each preemption costs one restart at any interval. A push does not
    count either, because it runs beside training. The caller has to use an interval that is not shorter than a push.

    Args:
        stall_s: Seconds that training stands still for one save.
        mean_s: Mean seconds between preemptions of the job. Infinity if there are none.

    Raises:
        ValueError: *stall_s* is negative, or *mean_s* is not above 0.
    """
    if not stall_s >= 0:
        raise ValueError(f"stall_s={stall_s} must be at least 0")
    if not mean_s > 0:
        raise ValueError(f"mean_s={mean_s} must be above 0")
    if stall_s >= 2 * mean_s:  # a shorter interval costs more than it protects
        return mean_s
    if math.isinf(mean_s):
        return mean_s
    share = stall_s / (2 * mean_s)
    return math.sqrt(2 * stall_s * mean_s) * (1 + math.sqrt(share) / 3 + share / 9) - stall_s
