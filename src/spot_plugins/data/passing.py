"""Batches that a resume passes over at the sampler of a loader, instead of fetching them again."""

from __future__ import annotations

import warnings
from typing import Any, Final

import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from .unwrap import plain_loader, streams

_ARRAYS: Final = {"numpy.ndarray", "numpy.memmap"}
_HUGGING_FACE: Final = "datasets.arrow_dataset.Dataset"
_COLLATES: Final = {"transformers.data.data_collator.default_data_collator", "trl.trainer.utils.identity"}
"""Full names of packages that are not imported. Checked against datasets 5.2, transformers 5.23 and trl 1.16."""


def can_pass_over(loader: Any) -> bool:
    """
    Return True if the batches of *loader* are those that its sampler names, in the order in which it names them.

    A class that makes its iterators itself may do more than that. With Accelerate each process needs a sampler.
    """
    plain = plain_loader(loader)
    return (
        isinstance(plain, DataLoader)
        and type(plain).__iter__ is DataLoader.__iter__
        and (plain is loader or type(loader).__name__ == "DataLoaderShard")
        and bool(getattr(plain, "in_order", True))
        and not streams(loader)
    )


def num_fetched_anyhow(loader: Any) -> int:
    """
    Return the number of batches before a position that *loader* has to fetch to reach it.

    An iterator of Accelerate fetches the first batch after the position together with the last one before it. The last
    one is fetched in turn together with the one before that.
    """
    return 0 if plain_loader(loader) is loader else 2


def depends_on_index_alone(loader: Any) -> bool:
    """
    Return True if the batches of *loader* are known to depend on nothing but the indices that the sampler yields.

    Known are data sets and collate functions that neither draw random numbers nor keep a state. A class of the program
    may do both, in ways that nobody can see from outside: its generator need not be a stream of the process.
    """
    return can_pass_over(loader) and has_known_data(loader)


def has_known_data(loader: Any) -> bool:
    """Return True if the data set of *loader* and its collate function are known to keep no state and draw nothing."""
    plain = plain_loader(loader)
    return _is_known(getattr(plain, "dataset", None)) and _is_known_collate(getattr(plain, "collate_fn", None))


def tell_of_new_workers() -> None:
    """Warn that new workers start where those of an uninterrupted training would continue."""
    warnings.warn(
        "the workers of the training loader begin anew in the middle of what they did. If a sample depends on more "
        "than its index, the rest differs from an uninterrupted training: random numbers drawn in the workers, and "
        "generators, counters and other state of the data set",
        stacklevel=5,
    )


def _is_known(dataset: Any) -> bool:
    kind = type(dataset)
    if kind in (range, torch.Tensor):
        return True
    if kind is TensorDataset:
        return all(type(tensor) is torch.Tensor for tensor in dataset.tensors)
    if kind is Subset:
        return _is_known(dataset.dataset)
    if kind in (ConcatDataset, StackDataset):
        parts = dataset.datasets
        return all(map(_is_known, parts.values() if isinstance(parts, dict) else parts))
    if _name(kind) in _ARRAYS:
        return not dataset.dtype.hasobject  # an object may do anything when it is collated
    # With the format "custom" Hugging Face calls a function of the program for each sample.
    return _name(kind) == _HUGGING_FACE and dataset.format["type"] != "custom"


def _is_known_collate(collate_fn: Any) -> bool:
    return collate_fn is default_collate or collate_fn is default_convert or _name(collate_fn) in _COLLATES


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
