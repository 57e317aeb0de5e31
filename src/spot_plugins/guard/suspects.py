"""Things that are not saved, each with what a later look needs to see that the training changes it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data import LoaderPosition
from .census import own_tensors
from .host import Kind
from .samples import is_plain, plain_values, samples_of, state_of


@dataclass(kw_only=True, slots=True, eq=False)
class Suspect:
    """One thing that is not saved, as far as is known."""

    kind: Kind
    key: int
    """``id()`` of the thing."""
    name: str
    """The class and the place, for the warning."""
    born: int
    """Number of the call of ``after_step()`` after which it was first seen."""
    look: Callable[[], object]
    """Returns what changes if the training uses the thing. None: the thing is gone, or cannot be looked at."""
    is_saved: Callable[[], bool]
    """Asks the newest recording."""
    before: object = None

    def has_changed(self) -> bool:
        """Return True if the thing has changed since it was first seen."""
        return (now := self.look()) is not None and now != self.before


def look_at_module(tensors: list[weakref.ref[torch.Tensor]]) -> Callable[[], object]:
    """Return a function that samples *tensors*."""

    def look() -> object:
        live = [tensor for each in tensors if (tensor := each()) is not None and is_plain(tensor)]
        return samples_of(live) if live and len(live) == len(tensors) else None

    return look


def look_at_buffer(module: nn.Module, name: str) -> Callable[[], object]:
    """Return a function that samples the buffer *name* of *module*, or returns None once its shape is another one."""
    held, shape = weakref.ref(module), module.get_buffer(name).shape

    def look() -> object:
        live = held()
        buffer = None if live is None else getattr(live, name, None)
        return samples_of([buffer]) if buffer is not None and is_plain(buffer) and buffer.shape == shape else None

    return look


def look_at_scheduler(scheduler: Any) -> Callable[[], object]:
    """Return a function that returns the counters of *scheduler*."""
    held = weakref.ref(scheduler)

    def look() -> object:
        live = held()
        if live is None:
            return None
        return live.last_epoch if isinstance(getattr(live, "last_epoch", None), int) else plain_values(live)

    return look


def look_at_scaler(scaler: torch.amp.GradScaler) -> Callable[[], object]:
    """Return a function that returns the state of *scaler*, or None as long as it scales nothing."""
    held = weakref.ref(scaler)

    def look() -> object:
        live = held()
        return live.state_dict() or None if live is not None else None

    return look


def look_at_source(position: LoaderPosition, key: int) -> Callable[[], object]:
    """
    Return a function that returns what the data set or sampler with the ``id()`` *key* of *position* counts by.

    A list that grows, or a value of another kind than at first, is that of a cache.
    """
    held, first = weakref.ref(position), position.numbers_of_sources()[key]

    def look() -> object:
        live = held()
        now = {} if live is None else live.numbers_of_sources()[key]
        return {name: now[name] if _is_like(now.get(name), value) else value for name, value in first.items()}

    return look


def _is_like(one: object, other: object) -> bool:
    return type(one) is type(other) and getattr(one, "__len__", int)() == getattr(other, "__len__", int)()


def look_at_generator(generator: Any) -> Callable[[], object]:
    """
    Return a function that returns the state of *generator*.

    A generator that the program has seeded again depends on that seed, and has no state of its own.
    """
    seed = generator.initial_seed() if isinstance(generator, torch.Generator) else None

    def look() -> object:
        if isinstance(generator, torch.Generator) and generator.initial_seed() != seed:
            return None
        return state_of(generator)

    return look


def unsaved_units(
    root: nn.Module, is_saved: Callable[[torch.Tensor], bool]
) -> list[tuple[str, nn.Module, list[torch.Tensor]]]:
    """
    Return the largest submodules of *root* of which nothing is saved, with their names in it and their tensors.

    A module of which some parts are saved is divided into its children.
    """
    units: list[tuple[str, nn.Module, list[torch.Tensor]]] = []
    waiting = [("", root)]
    seen: set[int] = set()
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        tensors = [tensor for each in module.modules() for tensor in own_tensors(each) if is_plain(tensor)]
        saved = [is_saved(tensor) for tensor in tensors]
        if not tensors or all(saved):
            continue
        if any(saved):
            waiting.extend((f"{path}.{key}" if path else key, child) for key, child in module.named_children())
        else:
            units.append((path, module, tensors))
    return units
