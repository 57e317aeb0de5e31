"""Records of the event log: an event or a fact about the process, with its time, as one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias, get_args

from ..events import Event

FORMAT: Final = 1

MAX_LINE_BYTES: Final = 8 * 1024
"""Largest line that is written or read."""

MAX_CHARACTERS: Final = 1000
"""Longest text in a record. The rest is cut off."""

_MAX_ITEMS: Final = 10_000
_MAX_NUMBER: Final = 2**53
_MAX_TIME: Final = 32_503_680_000.0  # the year 3000


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The session is open. This is the first record of a rank."""

    process_s: float | None
    """Seconds since the process began. None if that is unknown, or if the process had a session before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBegan:
    """The state is restored, or there was none. Training begins."""

    step: int | None
    """The step after which training continues. None on a first run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """The trainer runs."""

    step: int | None
    """The last step that is done, or that training was resumed from. None if there is none yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The session is closed. A trainer that is killed leaves no such record."""

    step: int | None
    """The last step that is done."""
    is_finished: bool
    """True if the training is done and its end is stored."""
    error: str | None
    """Class of the exception that ended the training, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerGone:
    """The pusher process has seen the end of its trainer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Records were dropped before this one, because too many waited."""

    num_records: int


Entry: TypeAlias = Event | Started | TrainingBegan | Heartbeat | Ended | TrainerGone | Dropped
"""The content of a record."""

_KINDS: Final = {kind.__name__: kind for kind in get_args(Entry)}


@dataclass(frozen=True, slots=True)
class Record:
    """An event or a fact, and its time."""

    at: float
    """Seconds since 1970, by the clock of the machine."""
    monotonic: float
    """Seconds by a clock that is never set. The trainer and the pusher of a rank share it."""
    entry: Entry


def encode(record: Record, hide: Callable[[str], str] = lambda text: text) -> bytes:
    """Return *record* as a line. *hide* removes secrets from each text. Texts and lists that are too long are cut."""
    return encode_body(body_of(record), hide)


def body_of(record: Record) -> dict[str, Any]:
    """Return *record* as a JSON object, which is also its form in a message to the pusher process."""
    kind = type(record.entry).__name__
    values = {name: _plain(value) for name, value in asdict(record.entry).items()}
    return {"at": record.at, "monotonic": record.monotonic, "kind": kind, "fields": values}


def encode_body(body: dict[str, Any], hide: Callable[[str], str] = lambda text: text) -> bytes:
    """Return what :func:`body_of` has made as a line. See :func:`encode`."""
    body = {**body, "fields": {name: _hidden(value, hide) for name, value in body["fields"].items()}}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Record | None:
    """
    Return the record in *line*, which is not trusted. None if its kind is unknown.

    Fields that this version does not know are ignored.

    Raises:
        ValueError: It is no record.
    """
    body = parse(line)
    kind = body.get("kind")
    at, monotonic, values = _time(body.get("at")), _time(body.get("monotonic")), body.get("fields")
    if not (isinstance(kind, str) and isinstance(values, dict)):
        raise ValueError("it is no record")
    if (known := _KINDS.get(kind)) is None:
        return None
    try:
        entry = known(**{each.name: _CHECKS[str(each.type)](values[each.name]) for each in fields(known)})
    except KeyError:
        raise ValueError(f"a {kind} lacks a field") from None
    return Record(at, monotonic, entry)


def parse(line: bytes) -> dict[str, Any]:
    """
    Return the JSON object in *line*, which is not trusted.

    Raises:
        ValueError: It is none, or too long.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("the line is too long")
    try:
        body = json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("the line is no object")
    return body


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it. Infinite numbers become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value[:MAX_CHARACTERS]
    return list(value[:64]) if isinstance(value, tuple) else value


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_hidden(each, hide) for each in value]
    return hide(value) if isinstance(value, str) else value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < _MAX_TIME:
        raise ValueError("it is no time")
    return float(value)


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        raise ValueError("it is no whole number")
    return value


def _float(value: Any) -> float:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if type(value) not in (int, float) or not abs(value) < _MAX_NUMBER:
        raise ValueError("it is no number")
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_LINE_BYTES:
        raise ValueError("it is no text")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("it is neither true nor false")
    return value


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _tuple_of(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > _MAX_ITEMS:
            raise ValueError("it is no list")
        return tuple(check(each) for each in value)

    return checked


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "int | None": _or_none(_int),
    "float | None": _or_none(_float),
    "str | None": _or_none(_str),
    "tuple[str, ...]": _tuple_of(_str),
    "tuple[int, ...]": _tuple_of(_int),
}
"""The check of a field, by the type that its class declares."""
