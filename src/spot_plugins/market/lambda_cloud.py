"""Lambda: prices of its machines, and the regions that have one now. It sells no interruptible machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from . import fields, web
from .base import Answer, Offer, Provider, ProviderError, Query
from .gpus import matches, normal_name
from .keys import need_key

URL: Final = "https://cloud.lambda.ai/api/v1/instance-types"


def find(query: Query, until: float) -> Answer:
    """Return one row for each region that has capacity, and one for a machine that no region has."""
    key = need_key("LAMBDA_API_KEY", ("~/.lambda_cloud/lambda_keys",))
    document = fields.document_of(web.fetch(URL, until, headers={"Authorization": f"Bearer {key}"}))
    types = document.get("data") if isinstance(document, Mapping) else None
    if not isinstance(types, Mapping):
        raise ProviderError("the answer is not as documented: data is missing")
    return fields.answer_of(types.values(), lambda row: _offers(row, query))


def _offers(row: Any, query: Query) -> Iterator[Offer]:
    machine = fields.field(row, "instance_type")
    count = fields.number(fields.field(machine, "specs"), "gpus", 1024)
    gpu = normal_name(fields.text(machine, "gpu_description"))
    if gpu is None or count < 1 or not matches(gpu, query.gpu) or query.count not in (None, count):
        return
    regions = [fields.text(region, "name") for region in fields.items(row, "regions_with_capacity_available")]
    for region in regions or ["no region"]:
        yield Offer(
            provider=PROVIDER.name,
            region=region,
            instance=fields.text(machine, "name"),
            gpu=gpu,
            count=int(count),
            spot_per_hour=None,
            on_demand_per_hour=fields.price(machine, "price_cents_per_hour") / 100,
            is_live=True,
            stock=None if regions else "none",
            source=URL,
            answered_at=fields.now(),
        )


PROVIDER: Final = Provider("lambda", 15.0, find)
