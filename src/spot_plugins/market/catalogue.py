"""The public catalogue of dstack: prices of nine clouds, collected every hour or so. It needs no key."""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, TypeAlias

from . import fields, web
from .base import Answer, Offer, Provider, ProviderError, Query
from .gpus import matches, normal_name
from .threads import in_parallel

URL: Final = "https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3"

_CLOUDS: Final = {
    **{name: name for name in ("aws", "azure", "gcp", "oci", "nebius", "verda", "runpod", "cloudrift")},
    "lambdalabs": "lambda",
}
"""By the catalogue's name of a cloud, ours."""

_MAX_CSV_BYTES: Final = 64 * 1024**2
"""Largest list of a cloud that is unpacked."""

_VERSION: Final = re.compile(rb"(20\d{6})-\d{1,9}\s*")

_newest: Final[dict[str, tuple[str, bytes]]] = {}
"""By cloud, the address and the archive that were read last. A watch must not fetch megabytes again in each round."""

_Prices: TypeAlias = dict[tuple[str, str, str, int], dict[bool, float]]
"""By machine, place, GPU and number of GPUs: the price as spot (True) and on demand (False)."""


def find(query: Query, until: float) -> Answer:
    """Return the offers of all clouds in the catalogue. A list that cannot be read costs its own rows and a note."""
    # The time of the caller is the limit of each.
    results = in_parallel({name: (PROVIDER.limit_s, partial(_offers_until, name, query, until)) for name in _CLOUDS})
    answer = Answer()
    failures = {name: result for name, result in sorted(results.items()) if isinstance(result, ProviderError)}
    if len(failures) == len(_CLOUDS):
        raise next(iter(failures.values()))
    for name, failure in failures.items():
        answer.notes.append(f"{name} is left out: {failure}")
    for name, result in results.items():
        if not isinstance(result, ProviderError):
            answer.offers += result.offers
            answer.notes += [f"{name}: {note}" for note in result.notes]
    return answer


def without_known(offers: list[Offer], others: list[Offer]) -> list[Offer]:
    """Return *offers* without those of providers that have given *others* themselves, which are newer."""
    known = {each.provider for each in others}
    return [each for each in offers if each.provider not in known]


def _offers_until(name: str, query: Query, until: float, _: float) -> Answer:
    """Return the offers of one cloud, with the date of its list as the time of the answer."""
    version = web.fetch(f"{URL}/{name}/version", until)
    found = _VERSION.fullmatch(version)
    try:
        made_at = datetime.strptime(found[1].decode() if found else "", "%Y%m%d").replace(tzinfo=timezone.utc)
    except ValueError:
        raise ProviderError("the answer is not as documented: the version of the list is no date") from None
    source = f"{URL}/{name}/{version.decode().strip()}/catalog.zip"
    prices: _Prices = {}
    before, archive = _newest.get(name, ("", b""))
    if before != source:
        archive = web.fetch(source, until)
    answer = fields.answer_of(_rows(name, archive), partial(_keep, query=query, prices=prices))
    _newest[name] = source, archive
    for (machine, place, gpu, count), price in prices.items():
        answer.offers.append(
            Offer(
                provider=_CLOUDS[name],
                region=place,
                instance=machine,
                gpu=gpu,
                count=count,
                spot_per_hour=price.get(True),
                on_demand_per_hour=price.get(False),
                is_live=False,
                source=source,
                answered_at=made_at,
            )
        )
    return answer


def _rows(name: str, archive: bytes) -> Iterator[dict[str, Any]]:
    """Yield the rows of the list in *archive*."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed, packed.open(f"{name}.csv") as file:
            text = file.read(_MAX_CSV_BYTES + 1)
        if len(text) > _MAX_CSV_BYTES:
            raise ProviderError(f"the list is larger than {_MAX_CSV_BYTES // 1024**2} MiB")
        yield from csv.DictReader(io.StringIO(text.decode()), strict=True)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ProviderError(f"the answer of {len(archive)} bytes is no archive with {name}.csv") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProviderError(f"{name}.csv is no list of comma-separated values") from error


def _keep(row: Any, query: Query, prices: _Prices) -> Iterator[Offer]:
    """Add the price of *row* to *prices*, if it is of a GPU that is looked for."""
    if not fields.optional(fields.text, row, "gpu_name") or fields.field(row, "gpu_count") == "0":
        return  # a machine without a GPU
    if "dws" in str(row.get("flags")) or "edgegpu" in fields.text(row, "instance_name"):
        return  # of Google: reserved beforehand, or a machine in the customer's own rooms
    gpu = normal_name(fields.text(row, "gpu_name"), fields.optional(fields.number, row, "gpu_memory"))
    count = fields.whole(row, "gpu_count")
    if gpu is None or not matches(gpu, query.gpu) or query.count not in (None, count):
        return
    key = fields.text(row, "instance_name"), fields.text(row, "location"), gpu, count
    price, is_spot = fields.price(row, "price"), fields.truth(row, "spot")
    of_machine = prices.setdefault(key, {})
    of_machine[is_spot] = min(price, of_machine.get(is_spot, price))
    yield from ()


PROVIDER: Final = Provider("catalogue", 30.0, find)
