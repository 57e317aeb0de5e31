"""The exact interval of a rate, from the number of events in a time."""

from __future__ import annotations

import math
from typing import Final

_LEVEL: Final = 0.95


def rate_interval(num_events: int, time: float) -> tuple[float, float]:
    """
    Return the exact (Garwood) 95 % interval of a rate, in events per unit of *time*.

    Args:
        num_events: Number of events that were seen.
        time: Time in which they were seen. Above 0.
    """
    tail = (1 - _LEVEL) / 2
    low = _gamma_quantile(num_events, tail) / time if num_events else 0.0
    return low, _gamma_quantile(num_events + 1, 1 - tail) / time


def _gamma_quantile(shape: int, share: float) -> float:
    """Return the quantile of the gamma distribution of a whole *shape* and of rate 1, by bisection."""
    low, high = 0.0, shape + 40.0 + 10.0 * math.sqrt(shape)
    for _ in range(200):
        middle = (low + high) / 2
        if 1 - _poisson(shape - 1, middle) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _poisson(most: int, mean: float) -> float:
    """Return the probability of at most *most* events, if *mean* are expected."""
    return math.fsum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(most + 1)) if mean else 1.0
