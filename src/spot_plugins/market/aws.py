"""AWS: spot prices by zone, how likely each zone is to have a machine, and how often machines were taken back."""

from __future__ import annotations

import time
from typing import Final

from . import aws_advisor, aws_api, fields
from .base import Answer, Offer, Provider, ProviderError, Query
from .gpus import matches
from .threads import in_parallel

_ONE: Final = ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")
_FOUR: Final = ("12xlarge", "24xlarge")

MACHINES: Final = {
    "p6-b300.48xlarge": ("B300", 8),
    "p6-b200.48xlarge": ("B200", 8),
    "p5en.48xlarge": ("H200", 8),
    "p5e.48xlarge": ("H200", 8),
    "p5.48xlarge": ("H100", 8),
    "p5.4xlarge": ("H100", 1),
    "p4de.24xlarge": ("A100-80GB", 8),
    "p4d.24xlarge": ("A100-40GB", 8),
    "p3dn.24xlarge": ("V100-32GB", 8),
    "p3.16xlarge": ("V100-16GB", 8),
    "p3.8xlarge": ("V100-16GB", 4),
    "p3.2xlarge": ("V100-16GB", 1),
    "g4dn.12xlarge": ("T4", 4),
    "g4dn.metal": ("T4", 8),
    **{f"g4dn.{size}": ("T4", 1) for size in _ONE},
    **{
        f"{family}.{size}": (gpu, 1) for family, gpu in (("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S")) for size in _ONE
    },
    **{
        f"{family}.{size}": (gpu, 4)
        for family, gpu in (("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S"))
        for size in _FOUR
    },
    **{f"{family}.48xlarge": (gpu, 8) for family, gpu in (("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S"))},
}
"""GPU and number of GPUs of each instance type."""

_MAX_TOLD: Final = 3


def find(query: Query, until: float) -> Answer:
    """Return one row for each instance type and zone that has a spot price now."""
    types = [
        name for name, (gpu, count) in MACHINES.items() if matches(gpu, query.gpu) and query.count in (None, count)
    ]
    if not types:
        return Answer()
    account = aws_api.open_account()
    notes: list[str] = []
    try:
        advice = aws_advisor.fetch_advice(types, _part_of(until, 0.3))
    except ProviderError as error:
        notes.append(f"no interruption rates: {error}")
        advice = {}
    regions = sorted({region for region, _ in advice}) or [account.region]
    prices = _prices(account, regions, types, _part_of(until, 0.6), notes)
    scores = _scores(account, prices, until, notes) if prices else {}
    answer = Answer(notes=notes)
    asked_at = fields.now()
    for each in prices:
        gpu, count = MACHINES[each.instance_type]
        saving, interruption = advice.get((each.region, each.instance_type), (None, None))
        score = scores.get((each.instance_type, each.zone_id))
        answer.offers.append(
            Offer(
                provider=PROVIDER.name,
                region=each.zone,
                instance=each.instance_type,
                gpu=gpu,
                count=count,
                spot_per_hour=each.per_hour,
                on_demand_per_hour=None,
                listed_discount=saving,
                is_live=score is not None,
                stock=None if score is None else f"score {score} of 10",
                interruption=interruption,
                source=aws_api.url_of(each.region),
                answered_at=asked_at,
            )
        )
    return answer


def _part_of(until: float, part: float) -> float:
    """Return the end of a *part* of the time that is left, so that a host that hangs leaves time for the others."""
    now = time.monotonic()
    return now + part * (until - now)


def _prices(
    account: aws_api.Account, regions: list[str], types: list[str], until: float, notes: list[str]
) -> list[aws_api.SpotPrice]:
    """Return the prices of all *regions*. A region that fails, such as one that is not enabled, is named in *notes*."""
    calls = {
        region: (until - time.monotonic(), lambda end, region=region: aws_api.spot_prices(account, region, types, end))
        for region in regions
    }
    results = in_parallel(calls)
    failed = {region: result for region, result in results.items() if isinstance(result, ProviderError)}
    if len(failed) == len(regions):
        raise next(iter(failed.values()))
    if failed:
        told = ", ".join(f"{region} ({error})" for region, error in sorted(failed.items())[:_MAX_TOLD])
        rest = f" and {len(failed) - _MAX_TOLD} more" if len(failed) > _MAX_TOLD else ""
        notes.append(f"{len(failed)} of {len(regions)} regions give no prices: {told}{rest}")
    return [price for result in results.values() if not isinstance(result, ProviderError) for price in result]


def _scores(
    account: aws_api.Account, prices: list[aws_api.SpotPrice], until: float, notes: list[str]
) -> dict[tuple[str, str], int]:
    """Return the placement scores by instance type and zone, of the regions with the lowest prices of that type."""
    calls = {}
    for kind in {price.instance_type for price in prices}:
        cheapest = sorted((price.per_hour, price.region) for price in prices if price.instance_type == kind)
        regions = list(dict.fromkeys(region for _, region in cheapest))
        calls[kind] = (
            until - time.monotonic(),
            lambda end, kind=kind, regions=regions: aws_api.placement_scores(account, kind, regions, end),
        )
    results = in_parallel(calls)
    if failed := next((result for result in results.values() if isinstance(result, ProviderError)), None):
        notes.append(f"no placement scores: {failed}")
    return {
        (kind, zone_id): score
        for kind, result in results.items()
        if not isinstance(result, ProviderError)
        for zone_id, score in result.items()
    }


PROVIDER: Final = Provider("aws", 30.0, find)
