"""All checks in their order. Begin with :func:`examine`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..config import from_environment
from ..economics.inputs import Options, checkpoint_of
from ..errors import ConfigError
from ..notices.surroundings import look_around
from .findings import Finding
from .here import look_at_machine, look_at_packages
from .launch_test import NOT_REHEARSED, look_at_launcher
from .notices import look_at_notices
from .places import Places


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """A run, the size of its checkpoints, and its launcher."""

    url: str
    params: str | None = None
    """Number of parameters, such as ``7B``. None: see *num_bytes*."""
    num_bytes: str | None = None
    """Size of a checkpoint, such as ``80GB``. None, and no *params*: unknown."""
    optimizer: str = "adamw"
    dtype: str = "mixed"
    num_nodes: int = 1
    """Machines that store a checkpoint, each its share."""
    grace_seconds: float | None = None
    """None: ``SPOT_GRACE_SECONDS``, or the default of that setting."""
    launcher: Sequence[str] = ()
    """A launcher and its options. Empty: none is rehearsed."""


def examine(examined: Examined) -> Iterator[Finding]:
    """
    Yield the findings of all checks, each as soon as it is there.

    Settings that a training would take from ``SPOT_*`` variables count here too.

    Raises:
        ConfigError: A value of *examined* or a variable cannot work.
    """
    if examined.num_nodes < 1:
        raise ConfigError(f"nodes={examined.num_nodes} must be at least 1")
    total = _checkpoint_bytes(examined)
    config = from_environment(url=examined.url, every_seconds="auto", grace_seconds=examined.grace_seconds)
    surroundings = look_around(config)
    places = Places(config, total, examined.num_nodes)
    yield from look_at_packages()
    yield from look_at_machine(None if total is None else total / examined.num_nodes)
    yield from look_at_notices(config, surroundings)
    yield from places.look_at_store()
    yield from places.look_at_disk()
    yield from places.look_at_grace(surroundings)
    if examined.launcher:
        yield from look_at_launcher(examined.launcher, config.grace_s)
    else:
        yield NOT_REHEARSED


def _checkpoint_bytes(examined: Examined) -> float | None:
    if examined.params is None and examined.num_bytes is None:
        return None
    options = Options(
        params=examined.params, bytes=examined.num_bytes, optimizer=examined.optimizer, dtype=examined.dtype
    )
    return checkpoint_of(options).value
