"""
Settings, checked once, before anything starts.

The body of :class:`SpotConfig` is the one table of settings. Each field has its name, type, default, kind and one line
of documentation. The checks, the ``SPOT_*`` variables and the printed form derive from it. The tests compare it with
the arguments of the hosts and with the table in the README.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, get_args

from .errors import ConfigError
from .locations import absolute_path, absolute_path_or_page, absolute_url
from .locations import printable_url as printable_url

OnNotice: TypeAlias = Literal["leave", "continue"]
ElasticBatch: TypeAlias = Literal["keep", "scale"]
FastForward: TypeAlias = Literal["auto", "fetch", "skip"]
NoticeSources: TypeAlias = Literal["auto"] | Sequence[str]
Seconds: TypeAlias = float | timedelta
EverySeconds: TypeAlias = float | timedelta | Literal["auto"]

DEFAULT_GRACE_S: Final = 30.0  # what torchrun, GCP, Azure and Kubernetes give by default
KNOWN_SOURCES: Final = ("aws", "gcp", "azure", "slurm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Rules that several settings share: reading one from a variable, checking it and printing it."""

    check: Callable[[Any], Any]
    """Returns the value to keep. Raises ValueError with a reason or a remedy that follows ``field=value``."""

    parse: Callable[[str], Any] | None
    """Reads the text of a variable. Raises ValueError if that is not *noun*. None: there is no variable."""

    noun: str
    """The form of a variable's text, such as ``a whole number``."""

    show: Callable[[Any], str] = repr
    """Prints a value of any type without secrets."""

    def described(self, documentation: str) -> dict[str, Any]:
        """Return the metadata of a field of this kind."""
        return {"kind": self, "documentation": documentation}


def _require(holds: bool, remedy: str) -> None:
    if not holds:
        raise ValueError(remedy)


def _place(wanted: str, if_empty: str, absolute: Callable[[str], str]) -> Kind:
    def check(value: Any) -> str:
        _require(isinstance(value, str), f"must be {wanted}")
        _require(value != "", if_empty)
        return absolute(value)

    def show(value: Any) -> str:
        return repr(printable_url(value) if isinstance(value, str) else value)

    return Kind(check=check, parse=str, noun="a string", show=show)


def _check_count(value: Any) -> int:
    _require(isinstance(value, numbers.Integral) and not isinstance(value, bool), "must be a whole number")
    _require(value >= 1, "must be at least 1")
    return int(value)


def _check_seconds(value: Any, wanted: str = "a timedelta or a number of seconds") -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    _require(isinstance(value, numbers.Real) and not isinstance(value, bool), f"must be {wanted}")
    _require(value > 0, "must be above 0")
    try:
        seconds = float(value)
    except OverflowError:  # an int of more than 308 digits
        seconds = math.inf
    _require(math.isfinite(seconds), "must be finite")
    return seconds


def _check_every_seconds(value: Any) -> float | Literal["auto"]:
    is_auto = isinstance(value, str) and value == "auto"
    return "auto" if is_auto else _check_seconds(value, "a timedelta, a number of seconds, or 'auto'")


def _check_switch(value: Any) -> bool:
    _require(isinstance(value, bool), "must be True or False")
    return bool(value)


def _parse_switch(text: str) -> bool:
    _require(text in ("true", "false"), "")
    return text == "true"


def _choice(choices: tuple[str, ...]) -> Kind:
    wanted = " or ".join(repr(choice) for choice in choices)

    def check(value: Any) -> str:
        _require(isinstance(value, str) and value in choices, f"must be {wanted}")
        return str(value)

    return Kind(check=check, parse=str, noun=wanted)


def _check_sources(value: Any) -> NoticeSources:
    if isinstance(value, str) and value == "auto":
        return "auto"
    are_names = isinstance(value, Sequence) and not isinstance(value, str)
    are_known = are_names and all(isinstance(name, str) and name in KNOWN_SOURCES for name in value)
    _require(are_known, f"must be 'auto' or names of {', '.join(KNOWN_SOURCES)}")
    return tuple(value)


def _parse_sources(text: str) -> NoticeSources:
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    return tuple(name.strip() for name in text.split(","))


def _check_options(value: Any) -> dict[str, Any]:
    are_named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    _require(are_named, "must be a dict of names and values, such as {'endpoint_url': 'http://127.0.0.1:9000'}")
    for name, each in value.items():
        _check_option(repr(name), each)
    return dict(value)


def _check_option(name: str, value: Any) -> None:
    """Raise :exc:`ValueError` unless *value* can be sent to the pusher process, which needs the options too."""
    if isinstance(value, (Mapping, list, tuple)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_option(f"{name}[{key!r}]", each)
        return
    _require(
        value is None or isinstance(value, (str, int, float)),
        f"has a {type(value).__name__} as {name}, which cannot be sent to the pusher process: give text, numbers, "
        f"True, False or None, and dicts or lists of them",
    )


_URL: Final = _place(
    "a string, such as 's3://bucket/run'", "names no place: give one, such as s3://bucket/run", absolute_url
)
_FILE: Final = _place("a string or None", "names no file: give a path, or None", absolute_path_or_page)
_DIRECTORY: Final = _place("a string or None", "names no directory: give a path, or None", absolute_path)
_COUNT: Final = Kind(check=_check_count, parse=int, noun="a whole number")
_SECONDS: Final = Kind(check=_check_seconds, parse=float, noun="a number")
_EVERY_SECONDS: Final = Kind(
    check=_check_every_seconds, parse=lambda text: text if text == "auto" else float(text), noun="a number, or 'auto'"
)
_SWITCH: Final = Kind(check=_check_switch, parse=_parse_switch, noun="true or false")
_SOURCES: Final = Kind(check=_check_sources, parse=_parse_sources, noun="auto, none, or names with commas between them")
_OPTIONS: Final = Kind(check=_check_options, parse=None, noun="", show=lambda value: "***")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotConfig:
    """
    The settings of a run. Each is checked when the object is made.

    Raises:
        ConfigError: A setting cannot work.
    """

    url: str = field(
        metadata=_URL.described("URL of the run, such as s3://bucket/run-7 or file:///data/run-7. One run per URL.")
    )

    every_steps: int | None = field(
        default=None, metadata=_COUNT.described("Optimizer steps between saves. None: not by steps.")
    )

    every_seconds: EverySeconds | None = field(
        default=None,
        metadata=_EVERY_SECONDS.described(
            "Seconds between saves, or a timedelta. 'auto': the interval that wastes least. None: not by time."
        ),
    )
    """The clock is that of rank 0. ``auto`` computes the interval from what saves have cost and how often the run was
    interrupted. With *every_steps* as well, a save begins when the first of the two is due."""

    grace_seconds: Seconds = field(
        default=DEFAULT_GRACE_S,
        metadata=_SECONDS.described("Seconds, or a timedelta, from a SIGTERM until the machine is gone."),
    )
    """Also for notices that do not name their end."""

    on_notice: OnNotice = field(
        default="leave",
        metadata=_choice(get_args(OnNotice)).described(
            "Once all ranks have saved: 'leave' on all of them, or 'continue' on those without a notice."
        ),
    )
    """``continue`` is for a launcher that replaces single ranks and keeps the others. torchrun does not: it starts all
    ranks again, and needs ``leave``. The ranks that stay save nothing more."""

    notice_sources: NoticeSources = field(
        default="auto",
        metadata=_SOURCES.described(
            "Services to ask for notices: aws, gcp, azure, slurm. 'auto': those that are found. Empty: none."
        ),
    )
    """Signals are notices in any case. An empty sequence asks no service."""

    notice_file: str | None = field(
        default=None,
        metadata=_FILE.described("File whose appearance is a notice, or an http:// URL. None: no file."),
    )
    """A URL answers 404 until there is a notice. Use it for other providers, and to rehearse. The content may be
    ``{"grace_seconds": 30}``."""

    acknowledge_notice: bool = field(
        default=False,
        metadata=_SWITCH.described("Let the provider take the machine as soon as all is saved. Azure only."),
    )
    """Billing stops sooner. Without it, nothing is lost but seconds."""

    keep_last: int = field(
        default=2, metadata=_COUNT.described("Committed checkpoints to keep, counted from the newest.")
    )

    keep_every: int | None = field(
        default=None,
        metadata=_COUNT.described("Keep each checkpoint whose step is a multiple of this as well. None: no others."),
    )

    local_dir: str | None = field(
        default=None,
        metadata=_DIRECTORY.described(
            "Directory on a fast local disk for a first copy. None: one in the temporary directory."
        ),
    )
    """None means no first copy if *url* is itself a local path."""

    local_dir_survives: bool = field(
        default=False,
        metadata=_SWITCH.described(
            "True if the next attempt finds the local disk again. A last save there then counts."
        ),
    )
    """True for machines that are stopped and keep their disk. Training then continues after a notice for a last save
    that only the local disk can store in time."""

    buffer_bytes: int | None = field(
        default=None,
        metadata=_COUNT.described(
            "Most bytes of host memory per rank for state on its way to the store. None: room for two states."
        ),
    )
    """The second of the two is made only for a save that cannot wait. A save that finds no room is deferred."""

    elastic_batch: ElasticBatch = field(
        default="keep",
        metadata=_choice(get_args(ElasticBatch)).described(
            "On another number of ranks: 'keep' the samples per step, or let them 'scale' with the ranks."
        ),
    )
    """``keep`` changes the gradient accumulation where that divides. ``scale`` leaves it alone."""

    fast_forward: FastForward = field(
        default="auto",
        metadata=_choice(get_args(FastForward)).described(
            "After a resume, 'fetch' the batches that were trained on, 'skip' them, or 'auto': skip if exact."
        ),
    )
    """``skip`` differs where a sample depends on more than its index: a warning says how. ``auto`` skips if the classes
    of data set and collate function are known to depend on nothing else, and fetches otherwise."""

    compile_cache: bool = field(
        default=False,
        metadata=_SWITCH.described("Keep compiled code at the URL, and load it. Trust all who can write there."),
    )
    """For ``torch.compile``. What is loaded holds pickles and machine code. Needs torch 2.7 or newer."""

    storage_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=_OPTIONS.described("Options of the fsspec file system, such as {'endpoint_url': ...}. Never printed."),
    )

    @property
    def every_s(self) -> float | Literal["auto"] | None:
        """Interval between saves in seconds, ``auto``, or None for no saves by time."""
        assert not isinstance(self.every_seconds, timedelta)
        return self.every_seconds

    @property
    def grace_s(self) -> float:
        """Grace period in seconds."""
        assert not isinstance(self.grace_seconds, timedelta)
        return self.grace_seconds

    def __repr__(self) -> str:
        shown = (f"{setting.name}={setting.kind.show(getattr(self, setting.name))}" for setting in SETTINGS)
        return f"SpotConfig({', '.join(shown)})"

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            # A timedelta becomes seconds, a list a tuple, and a path absolute.
            object.__setattr__(self, setting.name, setting.check(value))
        if self.every_steps is None and self.every_seconds is None:
            raise ConfigError(
                "every_steps=None and every_seconds=None: nothing would be saved before a notice, and a "
                "machine can vanish without one. Set at least one of them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A row of the table of settings, as a field of :class:`SpotConfig` gives it."""

    name: str

    type: str
    """Annotation of the field."""

    default: Any
    """None: None is a value of this setting. :data:`dataclasses.MISSING`: the setting has no default."""

    kind: Kind

    documentation: str
    """One line for a table, and for the arguments of a host."""

    @property
    def variable(self) -> str | None:
        """Name of the environment variable, or None if there is none."""
        return None if self.kind.parse is None else f"SPOT_{self.name.upper()}"

    def check(self, value: Any) -> Any:
        """
        Return *value* as it is kept.

        Raises:
            ConfigError: It cannot work.
        """
        try:
            return self.kind.check(value)
        except ValueError as error:
            raise ConfigError(f"{self.name}={self.kind.show(value)} {error}") from None


SETTINGS: Final = tuple(
    Setting(
        name=item.name,
        type=str(item.type),
        default=item.default if item.default_factory is MISSING else item.default_factory(),
        **item.metadata,
    )
    for item in fields(SpotConfig)
)
"""The table of settings, row by row."""


def checked(name: str, value: Any) -> Any:
    """
    Return *value* as setting *name* of a :class:`SpotConfig` keeps it, for a function that takes one setting alone.

    Raises:
        ConfigError: It cannot work.
    """
    return next(setting for setting in SETTINGS if setting.name == name).check(value)


def from_environment(**settings: Any) -> SpotConfig:
    """
    Build a :class:`SpotConfig` from *settings*, filling in what is missing from ``SPOT_*`` variables.

    ``SPOT_EVERY_STEPS`` stands for *every_steps*, and so on for each setting but *storage_options*. A variable holds a
    number, a word of the setting, ``true`` or ``false``. ``SPOT_NOTICE_SOURCES`` holds ``auto``, ``none``, or names
    with commas between them. A given setting is never overridden. None and an empty variable count as missing.

    Raises:
        ConfigError: A variable does not parse, or a setting cannot work.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for setting in SETTINGS:
        name, variable, parse = setting.name, setting.variable, setting.kind.parse
        if variable is None or parse is None or name in given or not (text := os.environ.get(variable)):
            continue
        try:
            given[name] = parse(text)
        except ValueError:
            raise ConfigError(f"{variable}={text!r} is not {setting.kind.noun}") from None
    if "url" not in given:
        raise ConfigError("url is missing. Pass it, or set SPOT_URL, for example to s3://bucket/run-7")
    return SpotConfig(**given)
