"""The Spot Instance Advisor of AWS: how many machines were taken back in the last month. It needs no key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from . import fields, web
from .base import Interruption, ProviderError

URL: Final = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"

_REGION: Final = re.compile(r"[a-z]{2}(?:-[a-z]+){1,3}-\d{1,2}")
_LABEL: Final = re.compile(r"<(\d{1,2})%|(\d{1,2})-(\d{1,2})%|>(\d{1,2})%")
_DAYS: Final = 30.0  # the share is that of the trailing month, not of a day


def fetch_advice(types: list[str], until: float) -> dict[tuple[str, str], tuple[float, Interruption]]:
    """
    Return discount and interruptions by region and instance type, of all regions that have one of *types*.

    Raises:
        ProviderError: The Advisor does not answer as it should.
    """
    document = fields.document_of(web.fetch(URL, until))
    try:
        ranges = _ranges(document)
        regions = fields.field(document, "spot_advisor")
        if not isinstance(regions, Mapping):
            raise fields.FieldError("spot_advisor must be an object")
        return {
            (region, kind): (fields.number(entry, "s", 100) / 100, ranges[fields.number(entry, "r", 100)])
            for region, systems in regions.items()
            if _REGION.fullmatch(region)  # it becomes part of an address to which credentials are sent
            for kind, entry in _linux(systems).items()
            if kind in types
        }
    except (fields.FieldError, KeyError) as error:
        raise ProviderError(f"the answer is not as documented: {error}") from None


def _linux(systems: Any) -> Mapping[str, Any]:
    found = systems.get("Linux", {}) if isinstance(systems, Mapping) else None
    if not isinstance(found, Mapping):
        raise fields.FieldError("Linux must be an object")
    return found


def _ranges(document: Any) -> dict[float, Interruption]:
    """Return the ranges by their index. Their borders are those of the labels, such as <5%, 5-10% and >20%."""
    return {fields.number(row, "index", 100): _range_of(row) for row in fields.items(document, "ranges")}


def _range_of(row: Any) -> Interruption:
    label = fields.text(row, "label")
    found = _LABEL.fullmatch(label.replace(" ", ""))
    if found is None:
        raise fields.FieldError(f"label={label!r} must be a range of percents")
    below, low, high, above = (None if part is None else float(part) / 100 for part in found.groups())
    return Interruption(low=low or above or 0.0, high=below or high, days=_DAYS, source="AWS Advisor")
