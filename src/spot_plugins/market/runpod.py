"""RunPod: prices and stock of its catalog. It has no interruptible machines any more."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from . import fields, web
from .base import Answer, Offer, Provider, Query
from .gpus import matches, normal_name
from .keys import need_key

URL: Final = "https://api.runpod.io/v2/catalog/gpus"


def find(query: Query, until: float) -> Answer:
    """Return the GPUs of the catalog, one row for each of its two clouds that has the GPU."""
    key = need_key("RUNPOD_API_KEY", ("~/.runpod/config.toml",))
    count = query.count or 1
    answer = Answer()
    for cloud in ("SECURE", "COMMUNITY"):  # the stock is that of one cloud
        url = f"{URL}?include=AVAILABILITY&product=POD&count={count}&cloud={cloud}"
        document = fields.document_of(web.fetch(url, until, headers={"Authorization": f"Bearer {key}"}))
        rows = fields.rows_in(document, "gpus")
        found = fields.answer_of(rows, partial(_offers, query=query, count=count, cloud=cloud))
        answer.offers += found.offers
        answer.notes += found.notes
    return answer


def _offers(row: Any, query: Query, count: int, cloud: str) -> Iterator[Offer]:
    name = fields.text(row, "name")
    gpu = normal_name(fields.text(row, "id"), fields.optional(fields.number, row, "memory"))
    if gpu is None or not matches(gpu, query.gpu) or row.get(cloud.lower()) is not True:
        return
    stock = fields.optional(fields.text, row, "availability")
    yield Offer(
        provider=PROVIDER.name,
        region=f"{cloud.lower()} cloud",
        instance=name,
        gpu=gpu,
        count=count,
        spot_per_hour=None,
        on_demand_per_hour=count * fields.price(fields.field(row, "price"), cloud.lower()),
        is_live=stock is not None,
        stock=stock,
        source=URL,
        answered_at=fields.now(),
    )


PROVIDER: Final = Provider("runpod", 15.0, find)
