"""Offers as flat documents: what ``--json`` prints, the cache keeps, and a user's file holds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any, Final

from . import fields
from .base import Interruption, Offer, Query
from .gpus import NAMES, matches, normal_name

VERSION: Final = 1
"""Version of the documents. It changes if a field goes away or changes its meaning."""

_MAX_FILE_BYTES: Final = 16 * 1024**2
_REQUIRED: Final = ("provider", "region", "gpu", "gpus", "answered_at")
_PRICES: Final = ("spot_dollars_per_hour", "on_demand_dollars_per_hour")
_RANGE: Final = ("interruption_low", "interruption_high", "interruption_days", "interruption_source")
_OPTIONAL: Final = ("instance", *_PRICES, "listed_discount", "live", "stock", *_RANGE, "source")
COMPUTED: Final = (
    *("kind", "dollars_per_hour", "dollars_per_gpu_hour", "dollars_per_useful_gpu_hour", "discount"),
    *("interruptions_per_day", "age_s"),
)
"""Fields that are printed for programs that read them, and ignored in a file."""


class RowsError(ValueError):
    """A file of rows cannot be used. The message names the row and the field."""


def document_of(offer: Offer) -> dict[str, Any]:
    """Return *offer* as a flat document, from which :func:`offer_of` makes it again."""
    rate = offer.interruption
    return {
        "provider": offer.provider,
        "region": offer.region,
        "instance": offer.instance,
        "gpu": offer.gpu,
        "gpus": offer.count,
        "spot_dollars_per_hour": offer.spot_per_hour,
        "on_demand_dollars_per_hour": offer.on_demand_per_hour,
        "listed_discount": offer.listed_discount,
        "live": offer.is_live,
        "stock": offer.stock,
        "interruption_low": rate and rate.low,
        "interruption_high": rate and rate.high,
        "interruption_days": rate and rate.days,
        "interruption_source": rate and rate.source,
        "source": offer.source,
        "answered_at": offer.answered_at.isoformat(timespec="seconds"),
    }


def offer_of(row: Any, default_source: str = "") -> Offer:
    """
    Return the offer that *row* describes.

    Raises:
        FieldError: A field is missing, unknown or wrong.
    """
    if not isinstance(row, Mapping):
        raise fields.FieldError("an offer must be an object")
    if unknown := [str(name) for name in row if name not in (*_REQUIRED, *_OPTIONAL, *COMPUTED)]:
        raise fields.FieldError(f"{unknown[0]!r:.40} is no field of an offer")
    gpu = normal_name(fields.text(row, "gpu"))
    if gpu is None:
        raise fields.FieldError(f"gpu={row['gpu']!r} must be one of {', '.join(NAMES)}")
    spot, on_demand = (fields.optional(fields.price, row, name) for name in _PRICES)
    if spot is None and on_demand is None:
        raise fields.FieldError("spot_dollars_per_hour or on_demand_dollars_per_hour is missing")
    return Offer(
        provider=fields.text(row, "provider"),
        region=fields.text(row, "region"),
        instance=fields.optional(fields.text, row, "instance") or "-",
        gpu=gpu,
        count=fields.whole(row, "gpus"),
        spot_per_hour=spot,
        on_demand_per_hour=on_demand,
        listed_discount=fields.optional(_share, row, "listed_discount"),
        is_live=fields.optional(fields.truth, row, "live") or False,
        stock=fields.optional(fields.text, row, "stock"),
        interruption=_interruption_of(row),
        source=fields.optional(fields.text, row, "source") or default_source,
        answered_at=fields.moment(row, "answered_at"),
    )


def read_file(path: str, query: Query) -> list[Offer]:
    """
    Return the offers of a user's JSON or CSV file that *query* looks for.

    Raises:
        RowsError: The file cannot be read, or one of its rows is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RowsError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise RowsError(f"{path} is not text in UTF-8") from None
    if len(text) > _MAX_FILE_BYTES:
        raise RowsError(f"{path} is larger than {_MAX_FILE_BYTES // 1024**2} MiB")
    offers = []
    for number, row in enumerate(_csv_rows(path, text) if path.endswith(".csv") else _json_rows(path, text), 1):
        try:
            offers.append(offer_of(row, path[-fields.MAX_TEXT :]))
        except fields.FieldError as error:
            raise RowsError(f"{path}, offer {number}: {error}") from None
    return [each for each in offers if matches(each.gpu, query.gpu) and query.count in (None, each.count)]


def _json_rows(path: str, text: str) -> list[Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{path} is not JSON: {error}. A file of comma-separated values needs a name in .csv") from None
    if isinstance(document, Mapping):
        if document.get("version") != VERSION:
            raise RowsError(f"{path}: version={document.get('version')!r:.40} must be {VERSION}")
        document = document.get("offers")
    if not isinstance(document, list):
        raise RowsError(f"{path} must be a list of offers, or an object with version and offers")
    return document


def _csv_rows(path: str, text: str) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise RowsError(f"{path} is not comma-separated: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise RowsError(f"{path}, offer {number} has more or fewer values than the first line has names")
    return rows


def _interruption_of(row: Mapping[str, Any]) -> Interruption | None:
    if all(row.get(name) in (None, "") for name in _RANGE):
        return None
    return Interruption(
        low=_share(row, "interruption_low"),
        high=fields.optional(_share, row, "interruption_high"),
        days=fields.price(row, "interruption_days"),
        source=fields.text(row, "interruption_source"),
    )


def _share(row: Any, name: str) -> float:
    return fields.number(row, name, 1)
