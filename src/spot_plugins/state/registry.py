"""The named parts of a training, and the live tensors in them: to whom they belong and when they may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import xxhash
from torch import nn

from ..format.boxes import ShardBoxes, whole
from ..format.manifest import Json
from .collection import no_collection
from .document import encode
from .encoder import segment, segments
from .live_tensor import KnownMemory, LiveTensor
from .model import ModelPart
from .optimizer import OptimizerPart
from .part import Part, ShardedPart, TensorPath
from .scaler import as_sharded
from .shard import Shard


class _Place(NamedTuple):
    """All that the name of a tensor says. Parts are never removed, so this stays true."""

    part: ShardedPart
    path: TensorPath
    is_replicated: bool
    """True if all ranks hold the tensor alike, unless it is spread over them."""


class Registry:
    """
    The named parts of a training.

    Names are checked, because a part gets back what was saved under its name. A tensor's name begins with the name of
    its part; for everything after that the registry asks the part.
    """

    def __init__(self) -> None:
        self._parts: dict[str, ShardedPart] = {}
        self._by_segment: dict[str, ShardedPart] = {}
        self._replicated: dict[str, set[str]] = {}
        self._places: dict[str, _Place] = {}
        self.record: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]] | None = None
        """Called with a function that takes the states of all parts. It returns these states. None: nobody listens."""

    def add(self, name: str, part: Part, replicated: tuple[str, ...] = ()) -> None:
        """
        Add *part* under *name*.

        *replicated* names top-level keys of a plain part's state, as :attr:`.ShardedPart.replicated` does. A
        :class:`.ShardedPart` names its keys itself.
        """
        if not name or "/" in name or name == "__metadata__":  # a word of safetensors
            raise ValueError(f"{name!r} is no name for a part: use a word without a slash")
        first = segment(name)
        if first in self._by_segment:
            raise ValueError(f"a part named {name!r} is registered already: choose another name")
        sharded = as_sharded(part)
        self._parts[name] = self._by_segment[first] = sharded
        self._replicated[first] = {segment(key) for key in (*sharded.replicated, *replicated)}

    def items(self) -> Iterator[tuple[str, ShardedPart]]:
        """Yield names and parts in the order in which they were added."""
        yield from self._parts.items()

    def capture(self, world_size: int) -> tuple[Json, dict[str, LiveTensor]]:
        """
        Return the state of all parts as JSON, and its tensors by name. The tensors are the live ones, not copies.

        Raises:
            UnsafeStateError: Something in the state has no pickle-free form.
        """
        with no_collection():
            document, tensors = self._encode()
            known = self._known_memory()
            places = {name: self._places.get(name) or self._place_of(name) for name in tensors}
            self._places = places  # without the names that are gone
            live: dict[str, LiveTensor] = {}
            for (name, value), (part, path, is_replicated) in zip(tensors.items(), places.values(), strict=True):
                boxes: ShardBoxes | None = None
                if isinstance(value, Shard):
                    tensor, boxes = value.local, value.boxes
                else:
                    tensor = value
                    if is_replicated:
                        boxes = _all_of(tensor.shape, world_size)
                live[name] = LiveTensor(tensor, boxes, part.changes(path, tensor, known))
        return document, live

    def alike(self, world_size: int) -> str:
        """Return a hash over name, dtype and shape of all tensors that every rank must hold alike."""
        _, live = self.capture(world_size)
        everybody = tuple(range(world_size))
        held_by_all = sorted(
            (name, str(tensor.dtype), boxes.shape)
            for name, (tensor, boxes, _) in live.items()
            if boxes is not None and boxes.holders == everybody
        )
        return xxhash.xxh3_128_hexdigest(repr(held_by_all).encode())

    def wanted(self) -> Callable[[str, tuple[int, ...]], Shard | None]:
        """
        Return a function that finds the shard which this rank wants of a saved tensor that the ranks share.

        The function takes the name and the shape of the saved tensor; it returns None if this rank wants all of it. A
        tensor that is spread over the ranks now comes back as it is spread. For tensors that do not exist yet the
        function asks the part.

        Raises:
            UnsafeStateError: Something in the state has no pickle-free form. This is found now, before the first save.
        """
        _, tensors = self._encode()
        shards = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Shard)}
        finders = {first: part.template_finder() for first, part in self._by_segment.items()}

        def want(name: str, shape: tuple[int, ...]) -> Shard | None:
            first, *rest = segments(name)
            template = shards.get(name)
            if template is None and first in finders:
                template = finders[first](tuple(rest))
            if template is None or template.boxes.shape != shape:
                return None
            return replace(template, on_host=self._by_segment[first].copies(tuple(rest)))

        return want

    def _encode(self) -> tuple[Json, dict[str, torch.Tensor | Shard]]:
        return encode(self._states() if self.record is None else self.record(self._states))

    def _place_of(self, name: str) -> _Place:
        first, *rest = segments(name)
        return _Place(self._by_segment[first], tuple(rest), len(rest) > 1 and rest[0] in self._replicated[first])

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def _known_memory(self) -> KnownMemory:
        trained: set[int] = set()
        frozen: set[int] = set()
        for part in self._parts.values():
            trained |= part.trained_memory()
            frozen |= part.frozen_memory()
        return KnownMemory(trained, frozen)


@lru_cache(maxsize=10_000)  # called for every tensor in every save, while training waits
def _all_of(shape: tuple[int, ...], world_size: int) -> ShardBoxes:
    return ShardBoxes(tuple(shape), (whole(tuple(shape)),), _everybody(world_size))


@lru_cache(maxsize=1)
def _everybody(world_size: int) -> tuple[int, ...]:
    return tuple(range(world_size))


class Register(Protocol):
    """The ``register`` method of a session, or :meth:`Registry.add`."""

    def __call__(self, name: str, part: Part, /) -> Any:
        """Add *part* under *name*."""
        ...


def register_model(
    register: Register,
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    schedulers: Iterable[Part] = (),
) -> None:
    """
    Register *model* and what trains it: as ``model``, ``optimizer-0``, ``scheduler-0``, and so on.

    Args:
        register: Called with the name and the part of each.
        model: As it is trained, with the wrappers of DDP or FSDP.
        optimizers: Those that train the model. Their state is stored by the names of the model's parameters.
        schedulers: Learning rate schedulers.
    """
    register("model", ModelPart(model))
    register_optimizers(register, model, optimizers, schedulers)


def register_optimizers(
    register: Register,
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    schedulers: Iterable[Part] = (),
) -> None:
    """Register *optimizers* and *schedulers* as :func:`register_model` does, but not the *model*."""
    for index, optimizer in enumerate(optimizers):
        register(f"optimizer-{index}", OptimizerPart(optimizer, model))
    for index, scheduler in enumerate(schedulers):
        register(f"scheduler-{index}", scheduler)
