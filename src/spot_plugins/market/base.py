"""The values that all providers give, and the form of a provider."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Query:
    """The GPUs that are looked for."""

    gpu: str
    """A name of :data:`.gpus.NAMES`. A name without its memory finds all sizes of memory."""
    count: int | None = None
    """Number of GPUs in one machine. None for any number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """Share of the machines that a provider takes back within a period."""

    low: float
    """Lower end of the range, from 0 to 1."""
    high: float | None
    """Upper end of the range. None if the range is open."""
    days: float
    """Length of the period. The share of AWS is that of a month, not of a day."""
    source: str

    @property
    def per_day(self) -> float:
        """Interruptions of one machine per day, at the upper end of the range or, if it is open, at the lower end."""
        share = self.low if self.high is None else self.high
        return math.inf if share >= 1 else -math.log1p(-share) / self.days


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """One kind of machine in one place, with its prices in US dollars."""

    provider: str
    region: str
    """Region or zone."""
    instance: str
    """The provider's own name of the machine or the GPU."""
    gpu: str
    """A name of :data:`.gpus.NAMES`."""
    count: int
    """Number of GPUs of the machine."""
    spot_per_hour: float | None
    """Price of the whole machine if it may be taken back. None if the provider sells no such machine."""
    on_demand_per_hour: float | None
    """Price of the whole machine if it is not taken back. None if the source does not say."""
    listed_discount: float | None = None
    """Discount that the source states without an on-demand price, from 0 to 1."""
    is_live: bool
    """True if the source knows that such a machine can be had now, or cannot. A price list knows neither."""
    stock: str | None = None
    """The source's own word on how many there are."""
    interruption: Interruption | None = None
    """None if the provider publishes no rate."""
    source: str
    """The address that gave the price."""
    answered_at: datetime
    """Time of the answer, with a time zone."""

    @property
    def kind(self) -> str:
        """``spot`` or ``on-demand``: the kind of machine that :attr:`per_hour` buys."""
        return "on-demand" if self.spot_per_hour is None else "spot"

    @property
    def per_hour(self) -> float:
        """The lower price of the whole machine: the spot price if there is one."""
        price = self.on_demand_per_hour if self.spot_per_hour is None else self.spot_per_hour
        assert price is not None, "an offer has at least one price"
        return price

    @property
    def per_gpu_hour(self) -> float:
        """The price per GPU, by which offers are compared. Providers list some machines per GPU and some as a whole."""
        return self.per_hour / self.count

    @property
    def discount(self) -> float | None:
        """Share by which the spot price is below the on-demand price. None if that is unknown."""
        if self.spot_per_hour is None or not self.on_demand_per_hour:
            return self.listed_discount
        return 1 - self.spot_per_hour / self.on_demand_per_hour


@dataclass(slots=True)
class Answer:
    """The rows of a provider, and a line for each thing that it lacks."""

    offers: list[Offer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ProviderError(Exception):
    """A provider gives no usable answer. The message never contains a key."""


Find: TypeAlias = Callable[[Query, float], Answer]
"""Function that asks a provider. Its second argument is the monotonic time at which the answer has to be there."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that can be asked. *find* raises :exc:`ProviderError`."""

    name: str
    limit_s: float
    """Longest time for the whole answer, in seconds."""
    find: Find
