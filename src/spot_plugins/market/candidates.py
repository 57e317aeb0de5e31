"""Offers as the part of a file of SkyPilot or dstack that says where to rent, the cheapest first."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final

from .base import Offer

MOST: Final = 10
"""Candidates that are written at most. More would be tried for hours before a job begins."""

_ZONE: Final = re.compile(r"(.*\d)-?[a-z]")  # a region of AWS or Google Cloud, and the letter of its zone
_SKYPILOT_GPUS: Final = {"A100-40GB": "A100", "V100-16GB": "V100"}
_BACKENDS: Final = {
    **{name: name for name in ("aws", "azure", "gcp", "lambda", "nebius", "oci", "runpod")},
    "vast": "vastai",
}
"""By provider, its name at dstack. SkyPilot knows the same ones, by our names."""

_WITH_REGIONS: Final = ("aws", "azure", "gcp", "lambda", "nebius", "oci")


class CandidatesError(ValueError):
    """No offer can be written for the tool. The message says why."""


def skypilot(offers: Iterable[Offer], now: datetime, tell: Callable[[str], object]) -> Iterator[str]:
    """
    Yield the lines of the ``resources`` of a SkyPilot task, which tries the candidates in their order.

    Places of marketplaces are no regions of SkyPilot, so only their provider is named.

    Args:
        offers: Offers of one number of GPUs, the best first.
        now: Time of the answer, for the comment.
        tell: Called with a line about providers that are not written.

    Raises:
        CandidatesError: There is no offer that the tool could rent.
    """
    chosen = _chosen(offers, _infra, "SkyPilot", tell)
    yield from _head(chosen, now, "SkyPilot tries them in this order")
    yield "resources:"
    yield "  job_recovery: {strategy: FAILOVER, recover_on_exit_codes: [143]}  # spot run ends with 143 after a notice"
    yield "  ordered:"
    for each in chosen:
        gpu = _SKYPILOT_GPUS.get(each.gpu, each.gpu)
        yield f"    - infra: {json.dumps(_infra(each))}  # ${each.per_gpu_hour:.3f} per GPU and hour"
        yield f"      accelerators: {json.dumps(f'{gpu}:{each.count}')}"
        yield f"      use_spot: {str(each.kind == 'spot').lower()}"


def dstack(offers: Iterable[Offer], now: datetime, tell: Callable[[str], object]) -> Iterator[str]:
    """
    Yield the lines of a dstack task that say which machines it may rent. dstack itself takes the cheapest of them.

    The arguments and errors are those of :func:`skypilot`.
    """
    chosen = _chosen(offers, _dstack_place, "dstack", tell)
    yield from _head(chosen, now, "dstack takes the cheapest that it finds")
    yield f"backends: [{', '.join(dict.fromkeys(_BACKENDS[each.provider] for each in chosen))}]"
    # A list of regions would exclude the providers that have none.
    regions = [_region(each) for each in chosen]
    if None not in regions:
        yield f"regions: {json.dumps(list(dict.fromkeys(regions)))}"
    kinds = {each.kind for each in chosen}
    yield f"spot_policy: {'auto' if len(kinds) > 1 else kinds.pop()}"
    yield f"max_price: {max(each.per_hour for each in chosen):.2f}  # dollars per hour of one machine"
    yield "retry: {on_events: [no-capacity, interruption, error], duration: 1d}"
    yield "resources:"
    gpus = {each.gpu for each in chosen}
    gpu = gpus.pop().replace("-", ":") if len(gpus) == 1 else chosen[0].gpu.partition("-")[0]
    yield f"  gpu: {json.dumps(f'{gpu}:{chosen[0].count}')}"


def _chosen(
    offers: Iterable[Offer],
    place: Callable[[Offer], str],
    tool: str,
    tell: Callable[[str], object],
) -> list[Offer]:
    """Return the first offers of each place that the tool knows."""
    found: dict[tuple[str, str, str], Offer] = {}
    unknown: dict[str, None] = {}
    for each in offers:
        if each.stock == "none":
            continue  # a live source says that there is none now
        if each.provider in _BACKENDS:
            found.setdefault((each.gpu, place(each), each.kind), each)
        else:
            unknown[each.provider] = None
    for name in unknown:
        tell(f"{name}: its offers are left out, because they are not written for {tool}")
    if not found:
        raise CandidatesError(f"no offer is of a provider that {tool} knows")
    return list(found.values())[:MOST]


def _head(chosen: list[Offer], now: datetime, order: str) -> Iterator[str]:
    yield f"# The cheapest {len(chosen)} of the offers of {now:%Y-%m-%d %H:%M} UTC. {order}. Prices change."


def _region(offer: Offer) -> str | None:
    """Return the region of a cloud that has regions. None for a marketplace."""
    if offer.provider in ("aws", "gcp") and (found := _ZONE.fullmatch(offer.region)):
        return found[1]
    return offer.region if offer.provider in _WITH_REGIONS else None


def _infra(offer: Offer) -> str:
    """Return the place of an offer in SkyPilot's words: cloud, region, and zone."""
    region = _region(offer)
    zone = offer.region if region not in (None, offer.region) else None
    return "/".join(filter(None, (offer.provider, region, zone)))


def _dstack_place(offer: Offer) -> str:
    return f"{offer.provider} {_region(offer)}"


TOOLS: Final = {"skypilot": skypilot, "dstack": dstack}
"""By the name of a tool, the function that writes its lines."""
