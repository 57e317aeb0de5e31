"""Price of a useful hour: the price of an hour, divided by its share that is spent on steps that are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .base import Offer

_S_PER_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Durations of a training on one machine."""

    checkpoint_bytes: float
    upload_bytes_per_s: float
    step_s: float
    restart_s: float
    """Time from the start of a machine to the first step."""
    every_s: float | None = None
    """Training time between saves. None if each save begins after the one before is stored."""
    assumed_per_day: float | None = None
    """Interruptions of one machine per day where the provider publishes no rate."""


def useful_price(offer: Offer, figures: Figures) -> float | None:
    """Return the price per GPU and useful hour. None if it is not known how often the machine is taken back."""
    if offer.spot_per_hour is None:
        return offer.per_gpu_hour
    per_day = figures.assumed_per_day if offer.interruption is None else offer.interruption.per_day
    if per_day is None:
        return None
    share = useful_share(figures, per_day / _S_PER_DAY)
    return offer.per_gpu_hour / share if share > 0 else math.inf


def useful_share(figures: Figures, per_s: float) -> float:
    """
    Return the share of the paid time that is spent on steps that are kept.

    Machines are taken back at random, *per_s* times per second on average, without a notice. A save is kept if its
    push ends before that. Training continues during a push, and the next save begins when the push has ended or later.
    """
    push_s = figures.checkpoint_bytes / figures.upload_bytes_per_s
    wanted_s = max(push_s, figures.every_s or 0.0)
    every_s = max(1, math.ceil(wanted_s / figures.step_s)) * figures.step_s
    if per_s * every_s < 1e-12:
        return 1.0
    # The k-th save of a machine is kept with probability exp(-per_s * (restart_s + k * every_s + push_s)), and is worth
    # every_s. The sum over all k, times per_s, because a machine lasts 1 / per_s on average:
    try:
        return per_s * every_s * math.exp(-per_s * (figures.restart_s + push_s)) / math.expm1(per_s * every_s)
    except OverflowError:
        return 0.0
