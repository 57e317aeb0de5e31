"""From live objects to a staged step in the pusher's hands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import xxhash

from .errors import StoreError
from .manifest import Json
from .placement import Placement, whole
from .push import BlobImage, Pusher, PushJob
from .ranks import Ranks
from .staging import Layout, SharedBuffer, Source, copy_into, plan_layout, signature
from .state import Shard, encode

logger = logging.getLogger(__name__)

ROOM_BYTES: Final = 1024**2  # a metric that appears later must not cost a new buffer and its page faults
MAX_BUFFERS: Final = 2  # one being pushed, one for a save that cannot wait: memory is bounded by twice the state


class Part(Protocol):
    """Anything with state: a model, an optimizer, a scheduler, a counter of the user's own."""

    def state_dict(self) -> Any:
        """Return the state: tensors, arrays, numbers, strings, and dicts and lists of them."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over what :meth:`state_dict` returned."""
        ...


class Parts:
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

    def capture(self, world_size: int) -> tuple[Json, dict[str, Source]]:
        """
        Return the state of all parts as JSON, and its tensors, which are still the live ones.

        Raises:
            UnsafeStateError: Something in it has no pickle-free form.
        """
        document, tensors = encode({name: part.state_dict() for name, part in self._parts.items()})
        prefixes, everybody = tuple(self._replicated), tuple(range(world_size))
        sources: dict[str, Source] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, Shard):
                sources[name] = Source(tensor.local, tensor.placement)
            elif name.startswith(prefixes):
                shape = tuple(tensor.shape)
                sources[name] = Source(tensor, Placement(shape, (whole(shape),), everybody))
            else:
                sources[name] = Source(tensor)
        return document, sources

    def alike(self, world_size: int) -> str:
        """Return a hash of what all ranks are to hold alike, by name, type and shape."""
        _, sources = self.capture(world_size)
        everybody = tuple(range(world_size))
        held = sorted(
            (name, str(tensor.dtype), placement.shape)
            for name, (tensor, placement) in sources.items()
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


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step in host memory, ready to be pushed."""

    step: int
    buffer: SharedBuffer
    layout: Layout
    state: Json

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs of this rank."""
        return sum(size for _, size in self.layout.blobs)


class Saver:
    """Stages steps into shared buffers and hands them to the pusher. Used by the training thread alone."""

    def __init__(self, parts: Parts, ranks: Ranks, pusher: Pusher) -> None:
        self._parts = parts
        self._ranks = ranks
        self._pusher = pusher
        self._buffers: list[SharedBuffer] = []
        self._num_made = 0
        self._signature: Hashable = None
        self._layout: Layout | None = None

    def stage(self, step: int, deadline: float) -> StagedStep:
        """
        Copy the state as it is now into a free buffer.

        Waits only when both buffers are still being pushed, until *deadline* (monotonic).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            StoreError: No buffer became free in time.
        """
        document, sources = self._parts.capture(self._ranks.world_size)
        layout = self._plan(sources)
        buffer = self._free_buffer(layout.num_bytes, deadline)
        copy_into(buffer, layout, sources)
        return StagedStep(step, buffer, layout, document)

    def push(self, staged: StagedStep) -> None:
        """Hand *staged* to the pusher, which owns its buffer until the step is committed or abandoned."""
        job = PushJob(
            step=staged.step,
            buffer=staged.buffer.number,
            blobs=tuple(BlobImage(offset=offset, num_bytes=size) for offset, size in staged.layout.blobs),
            tensors=staged.layout.slices,
            state=staged.state,
        )
        self._pusher.submit(job, staged.buffer.fd, staged.buffer.num_bytes)

    @property
    def has_room(self) -> bool:
        """Whether :meth:`stage` would find a buffer without waiting."""
        return len(self._buffers) < MAX_BUFFERS or not all(self._pusher.holds(each.number) for each in self._buffers)

    def close(self) -> None:
        """Let go of all buffers. The pusher keeps its own mappings."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def _plan(self, sources: dict[str, Source]) -> Layout:
        new = signature(sources)
        if self._layout is None or new != self._signature:
            self._layout = plan_layout(sources, self._ranks.rank)
            self._signature = new
        return self._layout

    def _free_buffer(self, num_bytes: int, deadline: float) -> SharedBuffer:
        if len(self._buffers) == MAX_BUFFERS:
            numbers = {buffer.number for buffer in self._buffers}
            started = time.monotonic()
            if not self._pusher.wait_released(numbers, deadline):
                raise StoreError("put", "", "two earlier steps are still being pushed")
            if (waited_s := time.monotonic() - started) > 0.1:
                logger.warning("training waited %.1f s for an earlier push", waited_s)
        for buffer in [b for b in self._buffers if not self._pusher.holds(b.number)]:
            if buffer.num_bytes >= num_bytes:
                return buffer
            self._pusher.forget_buffer(buffer.number)
            self._buffers.remove(buffer)
            buffer.close()
        self._num_made += 1
        self._buffers.append(SharedBuffer(self._num_made, num_bytes + ROOM_BYTES))
        return self._buffers[-1]
