"""Settings, checked once, before anything starts."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, get_args

from .errors import ConfigError

OnNotice: TypeAlias = Literal["leave", "continue"]
ElasticBatch: TypeAlias = Literal["keep", "scale"]
NoticeSources: TypeAlias = Literal["auto"] | Sequence[str]
EverySeconds: TypeAlias = float | Literal["auto"]

DEFAULT_GRACE_S: Final = 30.0  # what torchrun, GCP, Azure and Kubernetes give by default
KNOWN_SOURCES: Final = ("aws", "gcp", "azure", "slurm")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotConfig:
    """What to save, when, and where to."""

    url: str
    """Where the run lives, as an fsspec URL: ``s3://bucket/run-7``, ``file:///data/run-7``. One run per URL."""

    every_steps: int | None = None
    """Save after this many optimizer steps. None: not on steps."""

    every_seconds: EverySeconds | None = None
    """Save after this many seconds of rank 0's clock, whichever comes first. ``auto``: as often as wastes least, from
    what saves have cost and how often the run was interrupted. None: not on time."""

    grace_seconds: float = DEFAULT_GRACE_S
    """Seconds between a SIGTERM and the end of the machine. Also for notices that do not name their end."""

    on_notice: OnNotice = "leave"
    """Who leaves when one rank has a notice, once all have saved: ``leave`` all, ``continue`` only those with a
    notice of their own, so that an elastic launcher rescales. Those that stay save nothing more."""

    notice_sources: NoticeSources = "auto"
    """Who is asked for notices, beside signals: of ``aws``, ``gcp``, ``azure`` and ``slurm`` those whose traces are
    found (``auto``), or those that are named. Empty: nobody."""

    notice_file: str | None = None
    """A file whose appearance is a notice, or an ``http://`` URL that answers 404 until there is one; for other
    providers, and to rehearse. The content may be ``{"grace_seconds": 30}``."""

    acknowledge_notice: bool = False
    """Whether to tell the provider that all is saved, so that it takes the machine sooner and stops billing. Azure
    alone wants to know; without it, nothing is lost but seconds."""

    keep_last: int = 2
    """Committed checkpoints to keep; the newest one is never removed."""

    keep_every: int | None = None
    """Also keep every checkpoint whose step is a multiple of this. None: no others."""

    local_dir: str | None = None
    """Directory on a fast local disk for the first copy. None: a folder in the system's temporary directory,
    or none at all when *url* is itself a local path."""

    local_dir_survives: bool = False
    """Whether the next attempt finds what is in *local_dir*, as on machines that are stopped and keep their disk. Then
    a last save that only that disk can have in time is worth training on for."""

    buffer_bytes: int | None = None
    """Most host memory per rank that state on its way to the store may take, in bytes. None: room for two states,
    of which the second is made only for a save that cannot wait. A save that finds no room is deferred."""

    elastic_batch: ElasticBatch = "keep"
    """On another number of ranks: ``keep`` the samples per optimizer step, by other gradient accumulation where that
    divides; or leave accumulation alone, so that they ``scale`` with the ranks."""

    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the fsspec file system, for example ``{"endpoint_url": ...}``. May hold secrets: never printed."""

    def __repr__(self) -> str:
        shown = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "storage_options"}
        shown["url"] = printable_url(self.url)
        shown["notice_file"] = None if self.notice_file is None else printable_url(self.notice_file)
        return f"SpotConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        _require(isinstance(self.url, str), "url", self.url, "must be a string, such as 's3://bucket/run'")
        _require(self.url != "", "url", self.url, "names no place: give one, such as s3://bucket/run")
        _require(isinstance(self.local_dir, str | None), "local_dir", self.local_dir, "must be a string or None")
        survives = self.local_dir_survives
        _require(isinstance(survives, bool), "local_dir_survives", survives, "must be True or False")
        if self.every_steps is None and self.every_seconds is None:
            raise ConfigError(
                "every_steps=None and every_seconds=None: nothing would be saved before a notice, and a "
                "machine can vanish without one. Set at least one of them"
            )
        if self.every_steps is not None:
            _require_count("every_steps", self.every_steps)
        if self.every_seconds is not None and self.every_seconds != "auto":
            _require_seconds("every_seconds", self.every_seconds, "must be a number of seconds, or 'auto'")
        _require_seconds("grace_seconds", self.grace_seconds)
        _require(self.on_notice in get_args(OnNotice), "on_notice", self.on_notice, "must be 'leave' or 'continue'")
        _require_sources(self.notice_sources)
        _require(isinstance(self.notice_file, str | None), "notice_file", self.notice_file, "must be a string or None")
        _require(self.notice_file != "", "notice_file", self.notice_file, "names no file: give a path, or None")
        told = self.acknowledge_notice
        _require(isinstance(told, bool), "acknowledge_notice", told, "must be True or False")
        _require_count("keep_last", self.keep_last)
        if self.keep_every is not None:
            _require_count("keep_every", self.keep_every)
        if self.buffer_bytes is not None:
            _require_count("buffer_bytes", self.buffer_bytes)
        known = get_args(ElasticBatch)
        _require(self.elastic_batch in known, "elastic_batch", self.elastic_batch, "must be 'keep' or 'scale'")


def from_environment(**settings: Any) -> SpotConfig:
    """
    Build a :class:`SpotConfig` from *settings*, filling in what is missing from ``SPOT_*`` variables.

    ``SPOT_URL``, ``SPOT_EVERY_STEPS``, ``SPOT_EVERY_SECONDS``, ``SPOT_GRACE_SECONDS``, ``SPOT_ON_NOTICE``,
    ``SPOT_NOTICE_SOURCES`` (``auto``, ``none``, or names with commas between them), ``SPOT_NOTICE_FILE``,
    ``SPOT_ACKNOWLEDGE_NOTICE`` (``true`` or ``false``), ``SPOT_KEEP_LAST``, ``SPOT_KEEP_EVERY``, ``SPOT_LOCAL_DIR``,
    ``SPOT_LOCAL_DIR_SURVIVES`` (``true`` or ``false``), ``SPOT_BUFFER_BYTES`` and ``SPOT_ELASTIC_BATCH`` stand for the
    field of that name. A setting that is given, even as a default of the caller's own, is never overridden; one that is
    None counts as missing.

    Raises:
        ConfigError: A variable does not parse, or a setting cannot work.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, parse in _PARSERS.items():
        text = os.environ.get(f"SPOT_{name.upper()}")
        if name not in given and text:
            try:
                given[name] = parse(text)
            except ValueError:
                raise ConfigError(f"SPOT_{name.upper()}={text!r} is not {_ARTICLE[parse]}") from None
    if "url" not in given:
        raise ConfigError("url is missing: pass it, or set SPOT_URL, for example to s3://bucket/run-7")
    return SpotConfig(**given)


def printable_url(url: str) -> str:
    """Return *url* without its user, password and query: a signed URL carries its signature there."""
    return _SECRET_IN_URL.sub("***", url)


def _parse_sources(text: str) -> NoticeSources:
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    return tuple(name.strip() for name in text.split(","))


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _seconds_or_auto(text: str) -> EverySeconds:
    return "auto" if text == "auto" else float(text)


_SECRET_IN_URL: Final = re.compile(r"(?<=://)[^/]*(?=@)|(?<=\?).*")
_PARSERS: Final[dict[str, Any]] = {
    "url": str,
    "every_steps": int,
    "every_seconds": _seconds_or_auto,
    "grace_seconds": float,
    "on_notice": str,
    "notice_sources": _parse_sources,
    "notice_file": str,
    "acknowledge_notice": _true_or_false,
    "keep_last": int,
    "keep_every": int,
    "local_dir": str,
    "local_dir_survives": _true_or_false,
    "buffer_bytes": int,
    "elastic_batch": str,
}
_ARTICLE: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    _seconds_or_auto: "a number, or 'auto'",
    _true_or_false: "true or false",
    str: "a string",
}


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r} {remedy}")


def _require_sources(sources: Any) -> None:
    remedy = f"must be 'auto' or names of {', '.join(KNOWN_SOURCES)}"
    are_names = isinstance(sources, Sequence) and (sources == "auto" or not isinstance(sources, str))
    _require(are_names, "notice_sources", sources, remedy)
    _require(sources == "auto" or set(sources) <= set(KNOWN_SOURCES), "notice_sources", sources, remedy)


def _require_count(name: str, value: Any) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    _require(is_whole, name, value, "must be a whole number")
    _require(value >= 1, name, value, "must be at least 1")


def _require_seconds(name: str, value: Any, remedy: str = "must be a number of seconds") -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    _require(is_number, name, value, remedy)
    _require(value > 0, name, value, "must be above 0")
    _require(math.isfinite(value), name, value, "must be finite")
