"""How long to train between two saves."""

from __future__ import annotations

import math


def daly_interval_s(stall_s: float, mean_s: float) -> float:
    """
    Return the seconds of training between two saves that waste least (Daly 2006, FGCS 22:303).

    How long a restart takes does not matter: it is paid per preemption, however often one saves. Nor does a push
    that runs beside training, unless it takes longer than this.

    Args:
        stall_s: Seconds that training stands still for one save.
        mean_s: Mean seconds between preemptions of the job. Infinity: there are none.

    Raises:
        ValueError: A negative stall, or a mean that is not above 0.
    """
    if not stall_s >= 0:
        raise ValueError(f"stall_s={stall_s} must be at least 0")
    if not mean_s > 0:
        raise ValueError(f"mean_s={mean_s} must be above 0")
    if stall_s >= 2 * mean_s:  # a save is not worth its time more often than that
        return mean_s
    if math.isinf(mean_s):
        return mean_s
    share = stall_s / (2 * mean_s)
    return math.sqrt(2 * stall_s * mean_s) * (1 + math.sqrt(share) / 3 + share / 9) - stall_s
