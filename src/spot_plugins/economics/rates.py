"""
The rate of preemptions, from a provider's share or from a count, with its exact interval.

Preemptions are taken for a Poisson process: a machine is as likely to be taken in its first hour as in any later one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

HOURS_PER_DAY: Final = 24.0
HOURS_PER_MONTH: Final = 30 * HOURS_PER_DAY
"""Hours of a month of 30 days, as AWS's Spot advisor counts the trailing month."""

LEVEL: Final = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of preemptions of one machine."""

    per_hour: float
    """Expected preemptions in one machine hour."""
    low_per_hour: float | None = None
    """Lower limit of the exact interval. None if the rate was not counted."""
    high_per_hour: float | None = None
    """Upper limit of the exact interval. None if the rate was not counted."""

    def mean_s(self, nodes: int = 1) -> float:
        """Return the mean seconds between two preemptions of a job on *nodes* machines. Infinity if there are none."""
        return mean_s(self.per_hour, nodes)


def mean_s(per_hour: float, nodes: int = 1) -> float:
    """Return the mean seconds between two preemptions of a job, any of whose *nodes* machines may be taken."""
    return math.inf if per_hour == 0 else 3600 / (per_hour * nodes)


def rate_of_share(share: float, hours: float) -> Rate:
    """
    Convert the share of machines that are preempted within *hours* into a rate: ``-ln(1 - share) / hours``.

    A provider's share is a probability. It belongs to its period: a share per month is 30 times rarer than the same
    share per day.

    Args:
        share: Share of the machines, at least 0 and below 1.
        hours: The period, above 0 and finite.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share} must be at least 0 and below 1")
    if not (hours > 0 and math.isfinite(hours)):
        raise ValueError(f"hours={hours} must be above 0 and finite")
    return Rate(-math.log1p(-share) / hours)


def counted_rate(count: int, machine_hours: float) -> Rate:
    """
    Estimate the rate from *count* preemptions in *machine_hours*, with the exact interval.

    Raises:
        ValueError: An argument is out of range.
    """
    low, high = exact_interval(count, machine_hours)
    return Rate(count / machine_hours, low, high)


def exact_interval(count: int, exposure: float, level: float = LEVEL) -> tuple[float, float]:
    """
    Compute the exact confidence interval of a rate (Garwood 1936, Biometrika 28:437).

    The limits are quantiles of gamma distributions: chi2(a/2; 2k) / 2T and chi2(1 - a/2; 2k + 2) / 2T. They hold at
    least with probability *level*, also for few events. Without events the lower limit is 0.

    Args:
        count: Number of events, at least 0.
        exposure: Time in which they were counted, above 0 and finite. The limits are per unit of it.
        level: Confidence level, between 0 and 1.

    Raises:
        ValueError: An argument is out of range.
    """
    if count < 0:
        raise ValueError(f"count={count} must be at least 0")
    if not (exposure > 0 and math.isfinite(exposure)):
        raise ValueError(f"exposure={exposure} must be above 0 and finite")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must be between 0 and 1")
    tail = (1 - level) / 2
    low = _gamma_quantile(count, tail) / exposure if count else 0.0
    return low, _gamma_quantile(count + 1, 1 - tail) / exposure


def _gamma_quantile(shape: int, p: float) -> float:
    """Return the quantile *p* of the gamma distribution with scale 1, by bisection to the last bit."""
    # Ten standard deviations, beyond which the terms of the sum below would be too small for a number.
    low, high = max(0.0, shape - 10 * math.sqrt(shape)), shape + 40 + 10 * math.sqrt(shape)
    while low < (middle := (low + high) / 2) < high:
        # Because P(Gamma(n) > x) = P(Poisson(x) <= n - 1) for a whole number n.
        if 1 - _poisson_cdf(shape - 1, middle) < p:
            low = middle
        else:
            high = middle
    return high


def _poisson_cdf(count: int, mean: float) -> float:
    """Return the probability of at most *count* events. The terms are added from the last one down."""
    term = total = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    for number in range(count, 0, -1):
        term *= number / mean
        total += term
        if number < mean and term < 1e-18 * total:
            break
    return total
