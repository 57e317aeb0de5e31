"""Google Cloud: the billing catalog, whose prices of cores, memory, disks and GPUs add up to those of machines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from . import fields, web
from .base import Answer, Offer, Provider, ProviderError, Query
from .gpus import matches
from .keys import need_key

URL: Final = "https://cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus"

_MAX_PAGES: Final = 20
_HOURS_PER_MONTH: Final = 730  # Google's own figure


@dataclass(frozen=True, slots=True)
class _Machine:
    """The parts of a machine."""

    name: str
    gpu: str
    count: int
    cores: int
    memory_gib: int
    disk_gib: int
    family: str
    """The words for its cores and memory in the catalog."""
    gpu_words: str
    """The words for its GPU in the catalog."""


_A2: Final = [
    *(_Machine(f"a2-highgpu-{n}g", "A100-40GB", n, 12 * n, 85 * n, 0, "A2", "Tesla A100") for n in (1, 2, 4, 8)),
    _Machine("a2-megagpu-16g", "A100-40GB", 16, 96, 1360, 0, "A2", "Tesla A100"),
    *(
        _Machine(f"a2-ultragpu-{n}g", "A100-80GB", n, 12 * n, 170 * n, 375 * n, "A2", "Tesla A100 80GB")
        for n in (1, 2, 4, 8)
    ),
]
_A3: Final = [
    *(_Machine(f"a3-highgpu-{n}g", "H100", n, 26 * n, 234 * n, 750 * n, "A3", "H100 80GB") for n in (1, 2, 4, 8)),
    _Machine("a3-megagpu-8g", "H100", 8, 208, 1872, 6000, "A3Plus", "H100 80GB Mega"),
]
_G2: Final = [
    _Machine(f"g2-standard-{cores}", "L4", n, cores, 4 * cores, 0, "G2", "L4")
    for n, cores in ((1, 4), (2, 24), (4, 48), (8, 96))
]
_MACHINES: Final = [*_A2, *_A3, *_G2]

_FAMILY: Final = re.compile(r"(?:Spot Preemptible )?(\w+) Instance (Core|Ram) running in ")
_GPU: Final = re.compile(r"Nvidia (.+) GPU (?:attached to Spot Preemptible VMs )?running in ")
_DISK: Final = re.compile(r"SSD backed Local Storage(?: attached to Spot Preemptible VMs?)?(?: (?:running )?in .*)?$")

_HOURS: Final = {"h": 1, "GiBy.h": 1, "GiBy.mo": _HOURS_PER_MONTH}
"""By unit of a price, its hours."""


def find(query: Query, until: float) -> Answer:
    """Return one row for each machine and region in which all of its parts have a price."""
    machines = [each for each in _MACHINES if matches(each.gpu, query.gpu) and query.count in (None, each.count)]
    if not machines:
        return Answer()
    key = need_key("GOOGLE_API_KEY")
    words = {
        word for each in machines for word in (each.gpu_words, f"{each.family} Core", f"{each.family} Ram", "disk")
    }
    prices: dict[tuple[str, str, bool], float] = {}

    def keep(sku: Any) -> Iterator[Offer]:
        if (part := _part_of(fields.text(sku, "description"))) not in words:
            return
        usage = fields.field(fields.field(sku, "category"), "usageType")
        if usage not in ("OnDemand", "Preemptible"):
            return
        # Some spot prices are filed as OnDemand, so the description decides as well.
        is_spot = usage == "Preemptible" or "Spot Preemptible" in fields.text(sku, "description")
        for region in fields.items(sku, "serviceRegions"):
            prices[part, fields.text({"serviceRegions": region}, "serviceRegions"), is_spot] = _per_hour(sku)
        yield from ()

    answer = fields.answer_of(_skus(key, until), keep)
    asked_at = fields.now()
    for machine in machines:
        for region in sorted({region for part, region, _ in prices if part == machine.gpu_words}):
            spot, on_demand = (_price_of(machine, region, is_spot, prices) for is_spot in (True, False))
            if spot is not None or on_demand is not None:
                answer.offers.append(
                    Offer(
                        provider=PROVIDER.name,
                        region=region,
                        instance=machine.name,
                        gpu=machine.gpu,
                        count=machine.count,
                        spot_per_hour=spot,
                        on_demand_per_hour=on_demand,
                        is_live=False,
                        source=URL,
                        answered_at=asked_at,
                    )
                )
    return answer


def _part_of(description: str) -> str | None:
    """Return the part of a machine that *description* names: a GPU, cores or memory of a family, or a disk."""
    if (found := _FAMILY.match(description)) is not None:
        return f"{found[1]} {found[2]}"
    if (found := _GPU.match(description)) is not None:
        return found[1]
    return "disk" if _DISK.match(description) else None


def _per_hour(sku: Any) -> float:
    """Return the price of one unit for an hour. Raises :exc:`.FieldError`."""
    expression = fields.field((fields.items(sku, "pricingInfo") or [None])[0], "pricingExpression")
    unit = fields.text(expression, "usageUnit")
    if unit not in _HOURS:
        raise fields.FieldError(f"usageUnit={unit!r} must be h, GiBy.h or GiBy.mo")
    rate = fields.field((fields.items(expression, "tieredRates") or [None])[-1], "unitPrice")
    if fields.text(rate, "currencyCode") != "USD":
        raise fields.FieldError("currencyCode must be USD")
    dollars = (fields.optional(fields.number, rate, "units") or 0.0) + fields.number(rate, "nanos", 1e9) / 1e9
    return dollars / _HOURS[unit]


def _price_of(
    machine: _Machine, region: str, is_spot: bool, prices: dict[tuple[str, str, bool], float]
) -> float | None:
    """Return the price of *machine*, or None if one of its parts has no price in *region*."""
    amounts = {
        machine.gpu_words: machine.count,
        f"{machine.family} Core": machine.cores,
        f"{machine.family} Ram": machine.memory_gib,
        "disk": machine.disk_gib,
    }
    parts = [(prices.get((part, region, is_spot)), amount) for part, amount in amounts.items() if amount]
    total = 0.0
    for price, amount in parts:
        if not price:
            return None
        total += price * amount
    return total


def _skus(key: str, until: float) -> Iterator[Any]:
    """Yield the entries of all pages. The key is in a header, so that no address contains it."""
    token = ""
    for _ in range(_MAX_PAGES):
        url = f"{URL}?{urlencode({'pageSize': 5000, 'pageToken': token})}"
        document = fields.document_of(web.fetch(url, until, headers={"X-Goog-Api-Key": key}))
        yield from fields.rows_in(document, "skus")
        token = fields.optional(fields.field, document, "nextPageToken") or ""
        if not token:
            return
    raise ProviderError(f"the answer has more than {_MAX_PAGES} pages")


PROVIDER: Final = Provider("gcp", 40.0, find)
