"""Order of offers, and their two forms: a table for people and a document for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from .base import Interruption, Offer
from .rows import VERSION, document_of
from .useful import Figures, useful_price


def in_order(offers: Iterable[Offer], figures: Figures | None) -> list[Offer]:
    """Return *offers*, the cheapest first: per GPU and useful hour if there are *figures*, else per GPU and hour."""

    def key(offer: Offer) -> tuple[float, float, str, str, str]:
        price = offer.per_gpu_hour if figures is None else useful_price(offer, figures)
        price = math.inf if price is None else price  # an unknown price comes last
        return price, offer.per_gpu_hour, offer.provider, offer.region, offer.instance

    return sorted(offers, key=key)


def line_of(offer: Offer) -> str:
    """Return *offer* as one line."""
    place = f"{offer.count}x {offer.gpu} at {offer.provider}, {offer.region}"
    return f"${offer.per_gpu_hour:.3f} per GPU and hour: {place}, {offer.kind}"


def lines_of(offers: Iterable[Offer], figures: Figures | None, now: datetime) -> Iterator[str]:
    """Yield the lines of the table of *offers*, its head first."""
    rows = _rows_of(offers, figures, now)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_number = [head.startswith("$") or head == "DISCOUNT" for head in rows[0]]
    for row in rows:
        cells = zip(row, widths, is_number, strict=True)
        yield "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()


def _rows_of(offers: Iterable[Offer], figures: Figures | None, now: datetime) -> list[tuple[str, ...]]:
    useful = ("$/USEFUL GPU-H",) if figures else ()
    head = (
        "$/GPU-H",
        *useful,
        "$/H",
        "DISCOUNT",
        "GPUS",
        "PROVIDER",
        "REGION",
        "MACHINE",
        "KIND",
        "AVAILABLE",
        "INTERRUPTED",
    )
    rows: list[tuple[str, ...]] = [(*head, "AGE", "SOURCE")]
    for each in offers:
        price = useful_price(each, figures) if figures else None
        shown = "unknown" if price is None else f"{price:.3f}" if math.isfinite(price) else "never"
        rows.append(
            (
                f"{each.per_gpu_hour:.3f}",
                *((shown,) if figures else ()),
                f"{each.per_hour:.2f}",
                "-" if each.discount is None else f"{each.discount:.0%}",
                f"{each.count}x {each.gpu}",
                each.provider,
                each.region,
                each.instance,
                each.kind,
                f"{'live' if each.is_live else 'listed'}{f', {each.stock}' if each.stock else ''}",
                _interrupted(each, figures),
                age_text((now - each.answered_at).total_seconds()),
                urlsplit(each.source).hostname or each.source,
            )
        )
    return rows


def document(
    offers: Iterable[Offer], figures: Figures | None, notes: dict[str, list[str]], now: datetime
) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "version": VERSION,
        "printed_at": now.isoformat(timespec="seconds"),
        "offers": [_document(each, figures, now) for each in offers],
        "notes": [{"provider": name, "text": text} for name, texts in notes.items() for text in texts],
    }


def age_text(seconds: float) -> str:
    """Return an age in its largest unit that is not 0."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _document(offer: Offer, figures: Figures | None, now: datetime) -> dict[str, Any]:
    useful = useful_price(offer, figures) if figures else None
    per_day = None if offer.interruption is None else offer.interruption.per_day
    return {
        **document_of(offer),
        "kind": offer.kind,
        "dollars_per_hour": round(offer.per_hour, 6),
        "dollars_per_gpu_hour": round(offer.per_gpu_hour, 6),
        "dollars_per_useful_gpu_hour": round(useful, 6) if useful is not None and math.isfinite(useful) else None,
        "discount": None if offer.discount is None else round(offer.discount, 6),
        "interruptions_per_day": round(per_day, 6) if per_day is not None and math.isfinite(per_day) else None,
        "age_s": max(0, round((now - offer.answered_at).total_seconds())),
    }


def _interrupted(offer: Offer, figures: Figures | None) -> str:
    if offer.spot_per_hour is None:
        return "-"
    if offer.interruption is not None:
        return _range_text(offer.interruption)
    if figures is not None and figures.assumed_per_day is not None:
        return f"{figures.assumed_per_day:g}/day (assumed)"
    return "unknown"


def _range_text(rate: Interruption) -> str:
    share = f">{rate.low:.0%}" if rate.high is None else f"{100 * rate.low:.0f}-{rate.high:.0%}"
    period = "/day" if rate.days == 1 else "/month" if rate.days == 30 else f" in {rate.days:g} days"
    return f"{share}{period} ({rate.source})"
