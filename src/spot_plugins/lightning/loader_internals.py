"""
Private names of Lightning around its loaders, each in a small function.

:func:`.internals.check` checks the attributes at the start of every ``fit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader

from ..data import TrackedLoader
from ..errors import ConfigError
from .internals import LIGHTNING

try:
    from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
    from lightning.pytorch.utilities.combined_loader import _MaxSizeCycle
except ImportError as error:
    raise ConfigError(LIGHTNING.missing(f"private class: {error}")) from error


def call_before_fetch(trainer: Trainer, call: Callable[[], None]) -> None:
    """Run *call* before every fetch of a training batch."""
    epoch_loop = trainer.fit_loop.epoch_loop
    original = epoch_loop._on_before_fetch

    def on_before_fetch() -> None:
        call()
        original()

    epoch_loop.__dict__["_on_before_fetch"] = on_before_fetch


def stop_call_before_fetch(trainer: Trainer) -> None:
    """Undo :func:`call_before_fetch`."""
    trainer.fit_loop.epoch_loop.__dict__.pop("_on_before_fetch", None)


def make_training_loaders_again(trainer: Trainer) -> None:
    """Forget the training loaders, if there are any, so that Lightning makes them when the loop begins."""
    trainer.fit_loop._combined_loader = None


def call_with_training_loaders(trainer: Trainer, call: Callable[[CombinedLoader], None]) -> None:
    """Run *call* with the training loaders every time Lightning has made them, before it makes their iterators."""
    fit_loop = trainer.fit_loop
    original = fit_loop._load_combined_loader_states

    def load_combined_loader_states() -> None:
        original()
        call(_training_loader(trainer))

    fit_loop.__dict__["_load_combined_loader_states"] = load_combined_loader_states


def stop_call_with_training_loaders(trainer: Trainer) -> None:
    """Undo :func:`call_with_training_loaders`."""
    trainer.fit_loop.__dict__.pop("_load_combined_loader_states", None)


def replace_iterables(
    combined: CombinedLoader, begin: Callable[[], list[Any]], begun: Callable[[CombinedLoader], None]
) -> None:
    """
    Let all iterators of *combined* be made from other iterables.

    Its mode decides how often an iterator is made from each of them. Everybody else finds the loaders as before.

    Args:
        combined: A combined loader. Its class is replaced by a subclass, until :func:`restore_iterables`.
        begin: Called when the iterators of an epoch are made. Returns one iterable for each loader.
        begun: Called with *combined* right after they were made, before the first fetch.
    """
    original = type(combined)

    def make_iterators(self: CombinedLoader) -> CombinedLoader:
        loaders, self._flattened = self._flattened, begin()
        try:
            original.__iter__(self)
        finally:
            self._flattened = loaders
        begun(self)
        return self

    combined.__class__ = type(original.__name__, (original,), {"__iter__": make_iterators, "_replaced_class": original})


def restore_iterables(combined: CombinedLoader) -> None:
    """Undo :func:`replace_iterables`."""
    combined.__class__ = getattr(combined, "_replaced_class", type(combined))


def loaders_of(combined: CombinedLoader) -> list[Any]:
    """Return the loaders of *combined* in Lightning's order."""
    return list(combined.flattened)


def set_progress(combined: CombinedLoader, *, num_fetched: int, completed: list[bool]) -> None:
    """
    Let the new iterators of *combined* continue in the middle of an epoch.

    Args:
        combined: The combined loader whose iterators were just made.
        num_fetched: Batches of this epoch that were fetched before.
        completed: True for each loader that was gone through before. A cycle ends once all were.
    """
    iterator = combined._iterator
    assert iterator is not None
    iterator._idx = num_fetched
    if isinstance(iterator, _MaxSizeCycle):
        iterator._consumed = completed


def make_training_iterators(trainer: Trainer) -> None:
    """Make the iterators of all training loaders anew, and fetch the batch ahead, if there is one."""
    assert trainer.fit_loop._data_fetcher is not None
    iter(trainer.fit_loop._data_fetcher)


def num_batches_left(trainer: Trainer, tracked: list[TrackedLoader]) -> float:
    """Return the number of batches until Lightning ends the epoch in which *tracked* loaders continue."""
    combined = _training_loader(trainer)
    limits = combined.limits or [float("inf")] * len(tracked)
    left = [loader.num_left(limit) for loader, limit in zip(tracked, limits, strict=True)]
    if combined._mode == "min_size":
        return min(left)
    # The epoch ends when every loader was gone through once.
    return max((number for number, loader in zip(left, tracked, strict=True) if not loader.num_passes), default=0)


def num_batches(trainer: Trainer) -> float:
    """Return the number of batches of a full epoch, or infinity."""
    length = sized_len(_training_loader(trainer))
    return float("inf") if length is None else length


def loaders_made_in(trainer: Trainer) -> float:
    """Return the epoch in which the training loaders were made. Lightning makes them again every few epochs."""
    return trainer.fit_loop._last_train_dl_reload_epoch


def set_loaders_made_in(trainer: Trainer, epoch: float) -> None:
    """Let the training loaders count as made in *epoch*."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def fetches_ahead(trainer: Trainer) -> bool:
    """Return True if one batch is fetched ahead, because no length says which batch is the last."""
    fetcher = trainer.fit_loop._data_fetcher
    return isinstance(fetcher, _PrefetchDataFetcher) and fetcher.length is None


def training_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders that exist by now."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def validation_loaders(trainer: Trainer) -> list[Any]:
    """Return the validation loaders that exist by now."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def _training_loader(trainer: Trainer) -> CombinedLoader:
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    return combined
