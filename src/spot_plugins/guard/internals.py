"""
Private names of torch and of the standard library that this package reads, each in a small function.

Checked against torch 2.13. A version that lacks one of them makes the guard see less, and breaks nothing.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data.dataloader import _BaseDataLoaderIter as LoaderIterator

__all__ = [
    "LoaderIterator",
    "dataset_of",
    "global_generators",
    "index_sampler",
    "is_whole",
    "num_yielded",
    "transient_buffers",
    "version_of",
]


def version_of(tensor: torch.Tensor) -> int:
    """Return the number of changes of *tensor* in place, as torch counts them."""
    return int(tensor._version)


def is_whole(thing: nn.Module | torch.amp.GradScaler) -> bool:
    """
    Return False if the constructor of *thing* has failed, or has not run.

    Such an object lives as long as somebody holds the exception, as a notebook does.
    """
    try:
        return hasattr(thing, "_modules" if isinstance(thing, nn.Module) else "_enabled")
    except RuntimeError:  # a ScriptModule says it so
        return False


def num_yielded(iterator: Any) -> int:
    """Return the number of batches that an iterator of a ``DataLoader`` has yielded."""
    return getattr(iterator, "_num_yielded", 0)


def index_sampler(loader_or_iterator: Any) -> Any:
    """Return the object that a ``DataLoader`` shares with its iterators and with no other loader."""
    return getattr(loader_or_iterator, "_index_sampler", None)


def dataset_of(iterator: Any) -> Any:
    """Return the data set of an iterator of a ``DataLoader``."""
    return getattr(iterator, "_dataset", None)


def transient_buffers(module: nn.Module) -> set[str]:
    """Return the names of the buffers of *module* itself that are not persistent."""
    return set(getattr(module, "_non_persistent_buffers_set", ()))


def global_generators() -> list[tuple[str, object]]:
    """Return the global generators of torch, numpy and Python, with their names."""
    streams: list[tuple[str, object]] = [("torch's global stream", torch.default_generator)]
    if isinstance(legacy := getattr(np.random.mtrand, "_rand", None), np.random.RandomState):
        streams.append(("numpy's global stream", legacy))
    if isinstance(instance := getattr(random, "_inst", None), random.Random):
        streams.append(("Python's global stream", instance))
    return streams
