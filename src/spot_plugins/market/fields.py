"""Checks of the fields of answers and files, which others wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from ..clock import SystemClock
from .base import Answer, Offer, ProviderError

MAX_TEXT: Final = 120
MAX_PRICE: Final = 100_000.0
"""Dollars per hour that no machine costs. A larger price is a mistake of a unit."""


class FieldError(ValueError):
    """A field is missing or has a value that it must not have. The message names both."""


def document_of(body: bytes) -> Any:
    """Return *body* as JSON. Raises :exc:`ProviderError`."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"the answer of {len(body)} bytes is not JSON") from error


def field(item: Any, name: str) -> Any:
    """Return the field *name* of *item*, a JSON object. Raises :exc:`FieldError`."""
    if not isinstance(item, Mapping) or name not in item:
        raise FieldError(f"{name} is missing")
    return item[name]


def items(item: Any, name: str) -> list[Any]:
    """Return the list *name* of *item*. Raises :exc:`FieldError`."""
    value = field(item, name)
    if not isinstance(value, list):
        raise FieldError(f"{name}={_short(value)} must be a list")
    return value


def rows_in(document: Any, name: str) -> list[Any]:
    """Return the list *name* of the answer *document*. Raises :exc:`ProviderError`."""
    try:
        return items(document, name)
    except FieldError as error:
        raise ProviderError(f"the answer is not as documented: {error}") from None


def text(item: Any, name: str) -> str:
    """Return the text *name* of *item*, which can be printed as it is. Raises :exc:`FieldError`."""
    value = field(item, name)
    # A control character in a provider's text would be obeyed by the terminal.
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_TEXT:
        raise FieldError(f"{name}={_short(value)} must be a short text without control characters")
    return value.strip()


def number(item: Any, name: str, most: float = MAX_PRICE) -> float:
    """Return the number *name* of *item*, from 0 to *most*. Text that is a number counts. Raises :exc:`FieldError`."""
    value = field(item, name)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= most:
        raise FieldError(f"{name}={_short(value)} must be a number from 0 to {most:g}")
    return found


def price(item: Any, name: str) -> float:
    """Return the price *name* of *item*, above 0. Raises :exc:`FieldError`."""
    found = number(item, name)
    if found == 0:  # such a row is a placeholder, and would be the best offer of all
        raise FieldError(f"{name}=0 must be above 0")
    return found


def whole(item: Any, name: str) -> int:
    """Return the number of GPUs *name* of *item*, at least 1. Raises :exc:`FieldError`."""
    found = number(item, name, 1024)
    if found != int(found) or found < 1:
        raise FieldError(f"{name}={_short(field(item, name))} must be a whole number from 1 to 1024")
    return int(found)


def moment(item: Any, name: str) -> datetime:
    """Return the time *name* of *item*, with its time zone. Raises :exc:`FieldError`."""
    value = field(item, name)
    try:
        found = datetime.fromisoformat(str(value).strip().replace("Z", "+00:00"))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise FieldError(f"{name}={_short(value)} must be a time with its zone, such as 2026-11-29T12:00:00Z")
    return found


def truth(item: Any, name: str) -> bool:
    """Return the truth value *name* of *item*, in small or capital letters. Raises :exc:`FieldError`."""
    value = field(item, name)
    named = {"true": True, "false": False}.get(str(value).lower())
    if named is None:
        raise FieldError(f"{name}={value!r:.40} must be true or false")
    return named


def optional(read: Callable[[Any, str], Any], item: Any, name: str) -> Any:
    """Return ``read(item, name)``, or None if the field is missing, null or empty."""
    return None if not isinstance(item, Mapping) or item.get(name) in (None, "") else read(item, name)


def answer_of(rows: Iterable[Any], read: Callable[[Any], Iterable[Offer]]) -> Answer:
    """
    Return the offers that *read* makes of *rows*. Rows that it cannot read are left out, and a note says how many.

    Raises:
        ProviderError: No row can be read.
    """
    answer, reasons, count = Answer(), [], 0
    for row in rows:
        count += 1
        try:
            answer.offers += read(row)
        except FieldError as error:
            reasons.append(str(error))
    if reasons and len(reasons) == count:
        raise ProviderError(f"no row of the answer can be read: {reasons[0]}")
    if reasons:
        answer.notes.append(f"{len(reasons)} of {count} rows are left out: {reasons[0]}")
    return answer


def now() -> datetime:
    """Return the current time in UTC."""
    return SystemClock().utc()


def _short(value: Any) -> str:
    shown = repr(value)  # escapes control characters
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
