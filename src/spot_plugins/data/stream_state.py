"""The state of a data set that is a stream: data sets that keep too much of it after a resume, or too little."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch.utils.data import IterableDataset

from .rng import borrowed_streams
from .values import equal

_INITIAL: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
"""The state in which each data set was seen first. Lightning may make several loaders of one data set."""


def keeps_state(dataset: Any) -> bool:
    """Return True if *dataset* is a stream that saves and restores its own state."""
    stateful = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
    return isinstance(dataset, IterableDataset) and stateful


def initial_state(dataset: Any) -> Any:
    """Return the state that *dataset* had at the first call. None if it had none."""
    with suppress(TypeError):  # it cannot be the key of a weak dictionary
        if dataset in _INITIAL:
            return _INITIAL[dataset]
    state = None
    with suppress(Exception):  # it may have no state before it is iterated
        state = copy.deepcopy(dataset.state_dict())
    with suppress(TypeError):
        _INITIAL[dataset] = state
    return state


def repeats_start(dataset: Any, state: Any) -> bool:
    """
    Return True if every iterator of *dataset* begins at *state* once that was loaded, as Hugging Face's does.

    Two iterators of a copy are asked for one sample each. False if the data set cannot be copied.
    """
    with suppress(Exception), borrowed_streams():  # of code that is not ours, on a copy
        twin = copy.deepcopy(dataset)
        twin.load_state_dict(copy.deepcopy(state))
        return equal(_after_samples(twin, 1), _after_samples(twin, 1))
    return False


def loses_samples(dataset: Any, state: Any, later: Any, num_samples: int) -> bool:
    """
    Return True if *dataset* does not come from *state* to the *later* one with at most *num_samples* samples.

    A copy is asked for the samples. A data set with a shuffle buffer that is not part of its state fills the buffer
    anew, so its state is another one afterwards. False if the data set cannot be copied.
    """
    if equal(state, later):
        return True
    with suppress(Exception), borrowed_streams():  # of code that is not ours, on a copy
        twin = copy.deepcopy(dataset)
        twin.load_state_dict(copy.deepcopy(state))
        yielded, reached = _after_samples(twin, num_samples)
        return yielded == 0 or not equal(reached, later)
    return False


def _after_samples(dataset: Any, num_samples: int) -> tuple[int, Any]:
    """Return the number of samples that *dataset* yields, at most *num_samples*, and its state after them."""
    iterator = iter(dataset)
    yielded = sum(1 for _ in zip(range(num_samples), iterator, strict=False))
    return yielded, copy.deepcopy(dataset.state_dict())
