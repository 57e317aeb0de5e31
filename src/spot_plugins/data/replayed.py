"""Code that positions in counted and in stateful loaders share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.utils.data import IterableDataset

from .loader_rng import LoaderGenerators
from .rng import load_streams_state, streams_state
from .unwrap import plain_loader, set_epoch

MISSING: Final = object()
"""Default of ``next()`` that stands for an iterator that has ended."""


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
        self._epoch = 0
        self._before = 0  # batches of this epoch that earlier processes trained on
        self._at_begin: dict[str, Any] = {}  # streams when this epoch was begun for the first time
        self._loaded: Mapping[str, Any] | None = None  # a loaded position until an epoch begins
        self._interrupted: dict[str, Any] | None = None  # streams to restore after the fast-forward

    def begin(self, epoch: int) -> None:
        """Begin the epoch of a loaded position again, or a new epoch."""
        loaded, self._loaded = self._loaded, None
        set_epoch(self._loader, epoch)
        if loaded is not None and epoch == self._epoch:
            self._begin_again(loaded)
        else:
            self._begin_anew(loaded)
        self._epoch = epoch
        self._generators.begin(epoch)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Restore the streams that :meth:`begin` found."""
        if self._interrupted is not None:
            load_streams_state(self._interrupted)
            self._interrupted = None

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position after *batches* batches, or the loaded position if no epoch has begun since."""
        if self._loaded is not None:
            return dict(self._loaded)
        if self._interrupted is not None and batches > 0:
            raise RuntimeError(
                "training continued in the middle of an epoch, but its iterator was not brought to the position, so "
                "other samples were trained on. Call position.fast_forward(iterator) right after iter(loader)"
            )
        return {
            "batches": self._before + batches,
            "seeds": list(self._generators.seeds),
            "at_begin": self._at_begin,
        }

    def ends_after(self, batches: int) -> bool:
        """Return True if the epoch ends after *batches* batches. False for a loader without a length."""
        length = _length(self._loader)
        return length is not None and self.num_done() + batches >= length

    def num_done(self) -> int:
        """Return the number of batches before the position, whether its epoch has begun again or not."""
        return self._before if self._loaded is None else int(self._loaded["batches"])

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Keep the position until an epoch begins, because its use depends on the number of that epoch."""
        self._generators.seeds = list(at["seeds"])
        self._loaded = at
        self._epoch = epoch

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        self._before = loaded["batches"]
        self._at_begin = loaded["at_begin"]
        if self._before > 0:
            self._interrupted = streams_state()
            load_streams_state(self._at_begin)

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        self._before = 0
        self._at_begin = streams_state()


def _length(loader: Any) -> int | None:
    """Return the number of batches in an epoch. None if unknown; an iterable data set only estimates its length."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
