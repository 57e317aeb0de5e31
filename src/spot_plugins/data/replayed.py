"""Code that positions in counted and in stateful loaders share."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ..errors import ConfigError
from .loader_rng import LoaderGenerators
from .rng import load_streams_state, streams_state
from .unwrap import num_samples, plain_loader, samples_per_step, set_epoch, streams
from .values import equal
from .where import Where

MISSING: Final = object()
"""Default of ``next()`` that stands for an iterator that has ended."""

_REPLAYING: weakref.WeakSet[Replayed] = weakref.WeakSet()
"""Positions whose epoch was begun again, and whose iterator was not brought to the position yet."""


class Replayed:
    """
    Position counted in batches of an epoch that can be begun again with the same randomness.

    :class:`.LoaderGenerators` decides the order of samples and the seeds of workers. A sampler of the user may draw
    from the streams of the process, so the position also holds their state at the beginning of the epoch.

    One thing cannot be repeated: from the second epoch on, the streams of persistent workers continue from where the
    first epoch left them.
    """

    kind: str

    def __init__(self, loader: Any, world_size: int) -> None:
        self._loader = loader
        self._plain = plain_loader(loader)
        self._world_size = world_size
        self._generators = LoaderGenerators(loader)
        self._samples_per_step = samples_per_step(loader, world_size)
        self._pass = (0, 0)  # the epoch, and the number of passes that ended earlier in it
        self._before = 0  # batches of this pass that earlier processes trained on
        self.at_begin: dict[str, Any] = {}  # streams when this pass was begun for the first time
        self._at_fetch: dict[str, Any] | None = None  # streams right before its first fetch, if they were others
        self._loaded: Mapping[str, Any] | None = None  # a loaded position until an epoch begins
        self.interrupted: dict[str, Any] | None = None  # streams to restore after the fast-forward
        self.is_disturbed = False  # another position has set the streams for its own epoch since the begin

    def begin(self, epoch: int, number: int) -> None:
        """Begin the pass of a loaded position again, or a new pass."""
        loaded, self._loaded = self._loaded, None
        set_epoch(self._loader, epoch)
        if loaded is not None and (epoch, number) == self._pass:
            self._begin_again(loaded)
        else:
            self._begin_anew(loaded)
        self._pass = (epoch, number)
        self._generators.begin(epoch, number)

    def note_fetch(self, batches: int) -> None:
        """Keep the streams for the first fetch, because hooks of the program may have drawn from them since."""
        if self._before + batches == 0 and not equal(now := streams_state(), self.at_begin):
            self._at_fetch = now

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Return the next batch of *iterator*, or :data:`MISSING`."""
        return next(iterator, MISSING)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Restore the streams that :meth:`begin` found."""
        if self.interrupted is not None:
            load_streams_state(self.interrupted)
            self.interrupted = None
            _REPLAYING.discard(self)

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position after *batches* batches, or the loaded position if no epoch has begun since."""
        if self._loaded is not None:
            return dict(self._loaded)
        if self.interrupted is not None and batches > 0:
            raise RuntimeError(
                "training continued in the middle of an epoch, but its iterator was not brought to the position, so "
                "other samples were trained on. Call position.fast_forward(iterator) right after iter(loader)"
            )
        return {
            "batches": self._before + batches,
            "batch_size": self._samples_per_step,
            "num_samples": num_samples(self._loader),
            "seeds": list(self._generators.seeds),
            "at_begin": self.at_begin,
            "at_fetch": self._at_fetch,
        }

    def progress(self, batches: int) -> int:
        """Return the number of batches of the epoch that were trained on."""
        return self._before + batches

    def ends_after(self, batches: int) -> bool:
        """Return True if the epoch ends after *batches* batches. False for a loader without a length."""
        length = length_of(self._loader)
        return length is not None and self.num_done() + batches >= length

    def num_done(self) -> int:
        """Return the number of batches before the position, whether its epoch has begun again or not."""
        return self._before if self._loaded is None else int(self._loaded["batches"])

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Keep the position until a pass begins, because its use depends on which pass that is."""
        here = num_samples(self._loader)
        there = at.get("num_samples", here)
        if here != there:
            warnings.warn(
                f"the training data has num_samples={here}, and num_samples={there} in the checkpoint, so the rest of "
                f"this epoch has another order, and some samples come twice or never. Use the same data as before, or "
                f"start a new run",
                stacklevel=4,
            )
        self._generators.seeds = list(at["seeds"])
        self._loaded = at
        self._pass = (where.epoch, where.number)

    @property
    def _keeps_workers(self) -> bool:
        """True if workers live on from epoch to epoch."""
        return getattr(self._plain, "num_workers", 0) > 0 and bool(getattr(self._plain, "persistent_workers", False))

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        self._before = loaded["batches"]
        self.at_begin, self._at_fetch = loaded["at_begin"], loaded.get("at_fetch")
        if self._before > 0:
            self.interrupted, others = _streams_of_training()
            for each in (self, *others) if others else ():
                each.is_disturbed = True
            load_streams_state(self.at_begin)
            _REPLAYING.add(self)

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        self._before = 0
        self.at_begin, self._at_fetch = _streams_of_training()[0], None


def _streams_of_training() -> tuple[dict[str, Any], list[Replayed]]:
    """
    Return the streams as they are, or as they will be once other positions are reached, and these positions.

    A loop may begin the epoch of all its loaders before it brings any iterator to its position. The streams are then
    those of the begin of an epoch.
    """
    now = streams_state()
    others = [each for each in _REPLAYING if each.interrupted is not None]
    found = next((each.interrupted for each in others if equal(now, each.at_begin)), None)
    return (now, []) if found is None else (found, others)


def require_same(numbers: Iterable[tuple[str, Any, Any]], subject: str, other: str = "") -> None:
    """
    Raise :exc:`ConfigError` if a number is another one than in the checkpoint.

    Args:
        numbers: The name of each number, its value, and that in the checkpoint.
        subject: The thing that can only continue with the same numbers.
        other: Another way to continue, for the error.
    """
    for name, here, there in numbers:
        if here != there:
            raise ConfigError(
                f"{name}={here} differs from {name}={there} in the checkpoint, and {subject} can only continue with "
                f"the same number. Use {name}={there}{other}, or start a new run"
            )


def length_of(loader: Any) -> int | None:
    """Return the number of batches in an epoch. None if unknown; an iterable data set only estimates its length."""
    if streams(loader):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
