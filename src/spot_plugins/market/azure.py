"""Azure: the public list of retail prices, which needs no key and knows nothing of capacity or evictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from . import fields, web
from .base import Answer, Offer, Provider, ProviderError, Query
from .gpus import matches

URL: Final = "https://prices.azure.com/api/retail/prices"

_MAX_PAGES: Final = 20

_MACHINES: Final = {
    "ND96isr_H100_v5": ("H100", 8),
    "NC40ads_H100_v5": ("H100", 1),
    "NC80adis_H100_v5": ("H100", 2),
    "ND96isr_H200_v5": ("H200", 8),
    "ND96isr_MI300X_v5": ("MI300X", 8),
    "ND96amsr_A100_v4": ("A100-80GB", 8),
    "ND96asr_v4": ("A100-40GB", 8),
    "NC24ads_A100_v4": ("A100-80GB", 1),
    "NC48ads_A100_v4": ("A100-80GB", 2),
    "NC96ads_A100_v4": ("A100-80GB", 4),
    "NV36ads_A10_v5": ("A10", 1),
    "NV72ads_A10_v5": ("A10", 2),
    "NC4as_T4_v3": ("T4", 1),
    "NC64as_T4_v3": ("T4", 4),
    "ND40rs_v2": ("V100-32GB", 8),
}
"""GPU and number of GPUs of each machine, which the list of prices does not say."""


def find(query: Query, until: float) -> Answer:
    """Return one row for each machine and region, with the spot price beside the price on demand."""
    machines = [
        name for name, (gpu, count) in _MACHINES.items() if matches(gpu, query.gpu) and query.count in (None, count)
    ]
    if not machines:
        return Answer()
    prices: dict[tuple[str, str], dict[bool, float]] = defaultdict(dict)

    def keep(row: Any) -> Iterator[Offer]:
        # Values of filters are case sensitive, and names of products are not an interface, so check again.
        name = fields.text(row, "armSkuName").removeprefix("Standard_")
        kinds = f"{fields.text(row, 'productName')} {fields.text(row, 'skuName')} {fields.text(row, 'meterName')}"
        if name not in machines or any(word in kinds for word in ("Windows", "Low Priority", "Dedicated")):
            return
        if fields.text(row, "currencyCode") != "USD" or fields.text(row, "unitOfMeasure") != "1 Hour":
            raise fields.FieldError("currencyCode and unitOfMeasure must be USD and 1 Hour")
        if fields.text(row, "type") != "Consumption" or fields.number(row, "retailPrice") == 0:
            return
        prices[name, fields.text(row, "armRegionName")]["Spot" in kinds] = fields.price(row, "retailPrice")
        yield from ()

    answer = fields.answer_of(_rows(machines, until), keep)
    asked_at = fields.now()
    for (name, region), price in prices.items():
        gpu, count = _MACHINES[name]
        answer.offers.append(
            Offer(
                provider=PROVIDER.name,
                region=region,
                instance=f"Standard_{name}",
                gpu=gpu,
                count=count,
                spot_per_hour=price.get(True),
                on_demand_per_hour=price.get(False),
                is_live=False,
                source=URL,
                answered_at=asked_at,
            )
        )
    return answer


def _rows(machines: list[str], until: float) -> Iterator[Any]:
    """Yield the rows of all pages."""
    names = " or ".join(f"armSkuName eq 'Standard_{name}'" for name in machines)
    wanted = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and ({names})"
    url = f"{URL}?{urlencode({'$filter': wanted})}"
    for _ in range(_MAX_PAGES):
        document = fields.document_of(web.fetch(url, until))
        yield from fields.rows_in(document, "Items")
        following = document.get("NextPageLink")
        if not following:
            return
        parts = urlsplit(str(following))
        if (parts.scheme, parts.hostname) != ("https", urlsplit(URL).hostname):
            raise ProviderError("the next page of the answer is on another host, which is not asked")
        url = str(following)
    raise ProviderError(f"the answer has more than {_MAX_PAGES} pages")


PROVIDER: Final = Provider("azure", 20.0, find)
