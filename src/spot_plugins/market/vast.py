"""Vast.ai: live offers of single machines, with the lowest bid that gets them now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from . import fields, web
from .base import Answer, Offer, Provider, Query
from .gpus import matches, normal_name
from .keys import find_key

URL: Final = "https://console.vast.ai/api/v0/bundles/"

DISK_GB: Final = 32.0
"""Disk of a machine, whose price belongs to each offer."""

_MAX_OFFERS: Final = 64  # the service returns no more
_HOURS_PER_MONTH: Final = 30 * 24

_SPELLINGS: Final = {
    "H100": ("H100 SXM", "H100 NVL", "H100 PCIE"),
    "H200": ("H200", "H200 NVL"),
    "A100": ("A100 SXM4", "A100 PCIE"),
    "V100": ("Tesla V100",),
    "T4": ("Tesla T4",),
    "A6000": ("RTX A6000",),
    "A5000": ("RTX A5000",),
    "A4000": ("RTX A4000",),
    "RTX5090": ("RTX 5090",),
    "RTX4090": ("RTX 4090",),
    "RTX3090": ("RTX 3090",),
    "RTX6000ADA": ("RTX 6000Ada",),
    "RTXPRO6000": ("RTX PRO 6000 WS", "RTX PRO 6000 S"),
}
"""The service's spellings of names that it does not spell as we do."""


def find(query: Query, until: float) -> Answer:
    """Return the offers of the market for machines that may be outbid. A key is not needed."""
    model = query.gpu.partition("-")[0]
    wanted: dict[str, Any] = {
        "gpu_name": {"in": list(_SPELLINGS.get(model, (model,)))},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "type": "bid",
        "order": [["dph_total", "asc"]],
        "limit": _MAX_OFFERS,
        "allocated_storage": DISK_GB,
    }
    if query.count is not None:
        wanted["num_gpus"] = {"eq": query.count}
    key = find_key("VAST_API_KEY", ("~/.config/vastai/vast_api_key", "~/.vast_api_key"))
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    document = fields.document_of(web.fetch(URL, until, headers=headers, body=json.dumps(wanted).encode()))
    asked_at = fields.now()

    def offers_of(row: Any) -> Iterator[Offer]:
        memory_gb = fields.optional(fields.number, row, "gpu_ram")
        gpu = normal_name(fields.text(row, "gpu_name"), memory_gb and memory_gb / 1024)
        count = fields.whole(row, "num_gpus")
        if gpu is None or not matches(gpu, query.gpu) or query.count not in (None, count):
            return
        disk = DISK_GB * (fields.optional(fields.number, row, "storage_cost") or 0.0) / _HOURS_PER_MONTH
        bid = fields.price(row, "min_bid")
        base = fields.optional(fields.price, row, "dph_base")
        yield Offer(
            provider=PROVIDER.name,
            region=fields.optional(fields.text, row, "geolocation") or "unknown",
            instance=f"{fields.text(row, 'gpu_name')} #{fields.number(row, 'id', 1e15):.0f}",
            gpu=gpu,
            count=count,
            spot_per_hour=bid + disk,
            on_demand_per_hour=base + disk if base is not None and base > bid else None,
            is_live=True,
            source=URL,
            answered_at=asked_at,
        )

    return fields.answer_of(fields.rows_in(document, "offers"), offers_of)


PROVIDER: Final = Provider("vast", 15.0, find)
