"""From live objects to named tensors: what is saved, whose it is, and when it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, cast

import torch
import xxhash

from ..format.boxes import ShardBoxes, whole
from ..format.manifest import Json
from .document import encode
from .live_tensor import Changes, LiveTensor
from .part import Part
from .shard import Shard, memory_of

LARGE_BYTES: Final = 64 * 1024  # not worth a blob of its own below


class Registry:
    """The named parts of a training. What is restored must be what was saved, so names are checked."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._replicated: list[str] = []

    def add(self, name: str, part: Part, replicated: tuple[str, ...] = ()) -> None:
        """
        Add *part*.

        *replicated* names those of its top-level keys whose tensors are equal on all ranks, unless they are spread over
        them: the ranks share the work of storing them. Everything else is stored by each rank for itself.
        """
        if name in self._parts:
            raise ValueError(f"a part named {name!r} is registered already: choose another name")
        if not name or "/" in name:
            raise ValueError(f"{name!r} is no name for a part: use a word without a slash")
        self._parts[name] = part
        self._replicated += [f"{name}/{key}/" for key in replicated]

    def items(self) -> Iterator[tuple[str, Part]]:
        """Yield names and parts in the order in which they were added."""
        yield from self._parts.items()

    def capture(self, world_size: int) -> tuple[Json, dict[str, LiveTensor]]:
        """
        Return the state of all parts as JSON, and its tensors, which are still the live ones.

        Raises:
            UnsafeStateError: Something in it has no pickle-free form.
        """
        document, tensors = encode({name: part.state_dict() for name, part in self._parts.items()})
        prefixes, everybody = tuple(self._replicated), tuple(range(world_size))
        when = self._changes()
        sources: dict[str, LiveTensor] = {}
        for name, value in tensors.items():
            placement = None
            if isinstance(value, Shard):
                tensor, placement = value.local, value.placement
            else:
                tensor = value
                if name.startswith(prefixes):
                    shape = tuple(tensor.shape)
                    placement = ShardBoxes(shape, (whole(shape),), everybody)
            sources[name] = LiveTensor(tensor, placement, when(name, tensor))
        return document, sources

    def _changes(self) -> Callable[[str, torch.Tensor], Changes]:
        """
        Ask the parts, and return what tells when a tensor may change, by its name and its memory.

        What an optimizer trains, and its state, in its step; what no gradient is computed for, presumably never; so
        too large tensors that quantized modules keep beside it. Everything else at any time.
        """
        trained: set[int] = set()
        frozen: set[int] = set()
        optimizers: tuple[str, ...] = ()
        extras: tuple[str, ...] = ()
        for name, part in self._parts.items():
            if memory := cast("set[int]", getattr(part, "trained_memory", set)()):
                trained |= memory
                optimizers += (f"{name}/state/",)
            if hasattr(part, "frozen_memory"):
                frozen |= part.frozen_memory()
                extras += (f"{name}/extra/",)
        frozen -= trained

        def when(name: str, tensor: torch.Tensor) -> Changes:
            memory = memory_of(tensor)
            if memory in trained or name.startswith(optimizers):
                return Changes.IN_STEP
            is_extra = name.startswith(extras) and tensor.nbytes >= LARGE_BYTES
            return Changes.NEVER if memory in frozen or is_extra else Changes.ANYTIME

        return when

    def alike(self, world_size: int) -> str:
        """Return a hash of what all ranks are to hold alike, by name, type and shape."""
        _, sources = self.capture(world_size)
        everybody = tuple(range(world_size))
        held = sorted(
            (name, str(tensor.dtype), placement.shape)
            for name, (tensor, placement, _) in sources.items()
            if placement is not None and placement.holders == everybody
        )
        return xxhash.xxh3_128_hexdigest(repr(held).encode())

    def wanted(self) -> Callable[[str, tuple[int, ...]], Shard | None]:
        """
        Look at all parts, and return what tells which part of a tensor that the ranks share this rank wants back.

        It is asked with the name and the shape of the tensor; None means all of it. What is spread over the ranks now
        comes back as it is spread. State that an optimizer has yet to make goes with the parameter it belongs to.

        Raises:
            UnsafeStateError: Something in the state has no pickle-free form: refused now, not at the first save.
        """
        _, tensors = encode({name: part.state_dict() for name, part in self._parts.items()})
        templates = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Shard)}
        for name, part in self._parts.items():
            for path, template in getattr(part, "templates", dict)().items():
                templates[f"{name}/{path}"] = template

        def want(name: str, shape: tuple[int, ...]) -> Shard | None:
            owner = "/".join(name.split("/")[:3])  # of what an optimizer keeps: part/state/parameter
            template = templates.get(name) or templates.get(owner)
            return template if template is not None and template.placement.shape == shape else None

        return want
