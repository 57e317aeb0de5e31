"""What counted and stateful loaders share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.utils.data import IterableDataset

from .loader_rng import LoaderGenerators
from .rng import load_streams_state, streams_state
from .unwrap import plain_loader, set_epoch

MISSING: Final = object()
"""What ``next()`` returns where an iterator has ended."""


class Replayed:
    """
    A position counted in batches, in an epoch that can be begun once more with the same randomness.

    Orders and the seeds of workers are those of :class:`LoaderGenerators`. A sampler of the user's own may
    draw from the process' streams, so their state at the beginning of the epoch is part of the position. Not
    repeatable are the streams of persistent workers from the second epoch on: they are where the first left
    them.
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
        self._loaded: Mapping[str, Any] | None = None  # a position that no epoch has been begun with yet
        self._interrupted: dict[str, Any] | None = None  # streams to go back to after the fast-forward

    def begin(self, epoch: int) -> None:
        """Begin the epoch of a loaded position once more, or else a new one."""
        loaded, self._loaded = self._loaded, None
        set_epoch(self._loader, epoch)
        if loaded is not None and epoch == self._epoch:
            self._begin_again(loaded)
        else:
            self._begin_anew(loaded)
        self._epoch = epoch
        self._generators.begin(epoch)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Go back to the streams that :meth:`begin` found."""
        if self._interrupted is not None:
            load_streams_state(self._interrupted)
            self._interrupted = None

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position behind *batches* batches; a loaded one that was not begun, as it was."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {
            "batches": self._before + batches,
            "seeds": list(self._generators.seeds),
            "at_begin": self._at_begin,
        }

    def done_after(self, batches: int) -> bool:
        """Compare with the length of the loader, where it has one."""
        length = _length(self._loader)
        return length is not None and self.behind() + batches >= length

    def behind(self) -> int:
        """Return the batches of the position, whether its epoch has begun again or not."""
        return self._before if self._loaded is None else int(self._loaded["batches"])

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Keep the position until an epoch begins: what to do with it depends on which one that is."""
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
    """Return the number of batches in an epoch, or None: that of an iterable data set is only an estimate."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
