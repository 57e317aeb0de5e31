"""The money that spot machines save, and the points at which they stop to save any. All prices are the user's own."""

from __future__ import annotations

import math
from typing import Final

from .walltime import Costs, best_interval_s, goodput

_SHORTEST_S: Final = 1e-3
_LONGEST_S: Final = 1e12
"""Range of mean times between preemptions in which a break-even is searched, in seconds."""


def effective_saving(spot_price: float, on_demand_price: float, spot_goodput: float) -> float:
    """
    Compute the share of the on-demand cost that spot saves for training that is kept: ``1 - s / (d g)``.

    Args:
        spot_price: s, price of an hour, at least 0 and finite.
        on_demand_price: d, in the same unit, above 0 and finite. Training on demand is taken to waste nothing.
        spot_goodput: g, between 0 and 1. At 0 nothing is ever kept, and the saving is minus infinity.

    Returns:
        Negative if spot costs more.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= spot_price < math.inf:
        raise ValueError(f"spot_price={spot_price} must be at least 0 and finite")
    if not 0 < on_demand_price < math.inf:
        raise ValueError(f"on_demand_price={on_demand_price} must be above 0 and finite")
    if not 0 <= spot_goodput <= 1:
        raise ValueError(f"spot_goodput={spot_goodput} must be between 0 and 1")
    return -math.inf if spot_goodput == 0 else 1 - spot_price / (on_demand_price * spot_goodput)


def break_even_mean_s(price_ratio: float, costs: Costs, *, is_noticed: bool = False) -> float:
    """
    Compute the mean seconds between preemptions of a job at which spot costs as much as on-demand.

    The goodput of the best interval rises with the mean time, and spot pays where it exceeds *price_ratio*. The point
    is found by bisection, to a relative error of 1e-12.

    Args:
        price_ratio: Price of spot divided by the price on demand, at least 0 and finite.
        costs: The durations of the job.
        is_noticed: As for :func:`.walltime.goodput`.

    Returns:
        0 if spot costs nothing. Infinity if spot is not cheaper per hour, so that it never pays.

    Raises:
        ValueError: *price_ratio* is out of range.
    """
    if not 0 <= price_ratio < math.inf:
        raise ValueError(f"price_ratio={price_ratio} must be at least 0 and finite")
    if price_ratio == 0:
        return 0.0
    if price_ratio >= 1:
        return math.inf
    low, high = _SHORTEST_S, _LONGEST_S
    while high > low * (1 + 1e-12):
        middle = math.sqrt(low * high)
        if best_goodput(costs, middle, is_noticed=is_noticed) < price_ratio:
            low = middle
        else:
            high = middle
    return high


def best_goodput(costs: Costs, mean_s: float, *, is_noticed: bool = False) -> float:
    """Return the goodput of the best interval. Saves without a stall and without a push cost nothing at all."""
    interval_s = best_interval_s(costs, mean_s)
    # The limit of an interval of 0 is approached long before a millionth of the mean time.
    return goodput(interval_s or 1e-6 * mean_s, costs, mean_s, is_noticed=is_noticed)


def break_even_hours(effort: float, spot_price: float, on_demand_price: float, spot_goodput: float, gpus: int) -> float:
    """
    Compute the hours of training after which the money saved pays for making the training fit for spot.

    Args:
        effort: Money for the work, at least 0 and finite.
        spot_price: Price of a GPU hour.
        on_demand_price: Price of a GPU hour.
        spot_goodput: As for :func:`effective_saving`.
        gpus: Number of GPUs, at least 1.

    Returns:
        Hours of training that is kept. Infinity if spot saves nothing.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= effort < math.inf:
        raise ValueError(f"effort={effort} must be at least 0 and finite")
    if gpus < 1:
        raise ValueError(f"gpus={gpus} must be at least 1")
    saved_per_hour = effective_saving(spot_price, on_demand_price, spot_goodput) * on_demand_price * gpus
    return effort / saved_per_hour if saved_per_hour > 0 else math.inf
