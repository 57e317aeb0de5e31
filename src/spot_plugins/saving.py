"""From live objects to a staged step in the pusher's hands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import xxhash

from .errors import ConfigError, StoreError
from .events import Event, Staged
from .manifest import Json
from .placement import Placement, whole
from .push import BlobImage, Pusher, PushJob
from .ranks import Ranks
from .staging import Changes, Copier, Layout, SharedBuffer, Snapshot, Source, TornError, plan_layout, signature
from .state import Shard, encode, memory_of
from .triggers import Trigger

logger = logging.getLogger(__name__)

ROOM_BYTES: Final = 1024**2  # a metric that appears later must not cost a new buffer and its page faults
CLOSE_S: Final = 60.0  # longest wait for a copy that is under way
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
        trained: set[int] = set()
        optimizers: tuple[str, ...] = ()
        for name, part in self._parts.items():
            memory: set[int] = getattr(part, "trained_memory", set)()
            if memory:
                trained |= memory
                optimizers += (f"{name}/state/",)
        sources: dict[str, Source] = {}
        for name, value in tensors.items():
            placement = None
            if isinstance(value, Shard):
                tensor, placement = value.local, value.placement
            else:
                tensor = value
                if name.startswith(prefixes):
                    shape = tuple(tensor.shape)
                    placement = Placement(shape, (whole(shape),), everybody)
            in_step = memory_of(tensor) in trained or name.startswith(optimizers)
            sources[name] = Source(tensor, placement, Changes.IN_STEP if in_step else Changes.ANYTIME)
        return document, sources

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


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step in host memory, or on its way there."""

    step: int
    trigger: Trigger
    buffer: SharedBuffer
    layout: Layout
    state: Json
    stall_s: float
    """Seconds that training stood still to begin it."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs of this rank."""
        return sum(size for _, size in self.layout.blobs)


class Saver:
    """
    Stages steps into shared buffers and hands them to the pusher.

    Args:
        parts: What is saved.
        ranks: The processes of the job.
        pusher: Who pushes it.
        tell: Called with every event, on the thread where it happens.
        max_bytes: Most host memory that staged steps may take on this rank. None: room for two steps.
    """

    def __init__(
        self,
        parts: Parts,
        ranks: Ranks,
        pusher: Pusher,
        tell: Callable[[Event], None],
        max_bytes: int | None = None,
    ) -> None:
        self._parts = parts
        self._ranks = ranks
        self._pusher = pusher
        self._tell = tell
        self._max_bytes = max_bytes
        self._copier = Copier()
        self._overlaps = True
        self._buffers: list[SharedBuffer] = []
        self._num_made = 0
        self._prepared = threading.Event()
        self._prepared.set()
        self._signature: Hashable = None
        self._layout: Layout | None = None

    def prepare(self) -> None:
        """
        Make the first buffer, in the background, so that the first save need not.

        Raises:
            UnsafeStateError, ConfigError: As :meth:`save`.
        """
        if self._buffers:
            return
        _, sources = self._parts.capture(self._ranks.world_size)
        num_bytes = self._plan(sources).num_bytes
        self._check_size(num_bytes)
        self._prepared.clear()

        def make() -> None:
            try:
                self._make_buffer(num_bytes)
            finally:
                self._prepared.set()

        self._copier.do(make)

    def save(self, step: int, trigger: Trigger, deadline: float) -> None:
        """
        Save the state as it is now. What only the step of an optimizer changes is copied until the next one begins.

        Waits only when both buffers are still being pushed, until *deadline* (monotonic).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            ConfigError: It does not fit into the memory that it is given.
            StoreError: No buffer became free in time.
        """
        staged, snapshot = self._begin(step, trigger, deadline)
        self._pusher.announce(step, staged.buffer.number)
        if snapshot.is_complete:
            self._finish(staged, 0.0, None)
            return
        self._copier.complete(snapshot, lambda waited_s, error: self._finish(staged, waited_s, error))
        if not self._overlaps:
            self._copier.fence()

    def stage(self, step: int, trigger: Trigger, deadline: float) -> StagedStep:
        """
        Copy the state as it is now into a free buffer, all of it, and keep it there.

        Waits and raises as :meth:`save`.
        """
        staged, snapshot = self._begin(step, trigger, deadline)
        snapshot.issue()
        snapshot.hold_back()
        snapshot.wait()
        self._tell_staged(staged, 0.0)
        return staged

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

    def fence(self) -> None:
        """Wait until nothing depends on live state any more: weights may now be changed by anyone."""
        self._copier.fence()

    @property
    def has_room(self) -> bool:
        """Whether :meth:`stage` would find a buffer without waiting."""
        return self._may_grow(0) or not all(self._pusher.holds(each.number) for each in self._buffers)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Hand over what is being copied, and let go of all buffers. The pusher keeps its own mappings."""
        if not self._copier.close(timeout_s):  # its device hangs: then nothing can be taken from under it
            logger.error("a copy from the device does not end; it is left alone")
            return
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def _begin(self, step: int, trigger: Trigger, deadline: float) -> tuple[StagedStep, Snapshot]:
        started = time.monotonic()
        self._copier.fence()  # at most one copy at a time: it is done, or the optimizer's step would not be
        document, sources = self._parts.capture(self._ranks.world_size)
        layout = self._plan(sources)
        buffer = self._free_buffer(layout.num_bytes, deadline)
        snapshot = Snapshot(buffer, layout, sources)
        return StagedStep(step, trigger, buffer, layout, document, time.monotonic() - started), snapshot

    def _finish(self, staged: StagedStep, waited_s: float, error: Exception | None) -> None:
        if error is None:
            self._tell_staged(staged, waited_s)
            self.push(staged)
            return
        if isinstance(error, TornError):
            self._overlaps = False
            logger.warning("%s. From now on each save copies everything before training goes on", error)
        self._pusher.abandon(staged.step, staged.buffer.number, f"it could not be copied: {error}")

    def _tell_staged(self, staged: StagedStep, waited_s: float) -> None:
        event = Staged(
            step=staged.step,
            trigger=staged.trigger,
            num_bytes=staged.num_bytes,
            stall_s=staged.stall_s + waited_s,
        )
        logger.info("staged step %s (%s), %.3f s, %s bytes", event.step, event.trigger, event.stall_s, event.num_bytes)
        self._tell(event)

    def _plan(self, sources: dict[str, Source]) -> Layout:
        new = signature(sources)
        if self._layout is None or new != self._signature:
            self._layout = plan_layout(sources, self._ranks.rank)
            self._signature = new
        return self._layout

    def _free_buffer(self, num_bytes: int, deadline: float) -> SharedBuffer:
        self._prepared.wait()
        self._check_size(num_bytes)
        if not self._may_grow(num_bytes):
            numbers = {buffer.number for buffer in self._buffers}
            started = time.monotonic()
            if not self._pusher.wait_released(numbers, deadline):
                raise StoreError("put", "", "earlier steps are still being pushed, and hold all memory for saves")
            if (waited_s := time.monotonic() - started) > 0.1:
                logger.warning("training waited %.1f s for an earlier push", waited_s)
        for buffer in [b for b in self._buffers if not self._pusher.holds(b.number)]:
            if buffer.num_bytes >= num_bytes:
                return buffer
            self._pusher.forget_buffer(buffer.number)
            self._buffers.remove(buffer)
            buffer.close()
        return self._make_buffer(num_bytes)

    def _make_buffer(self, num_bytes: int) -> SharedBuffer:
        self._num_made += 1
        self._buffers.append(SharedBuffer(self._num_made, num_bytes + ROOM_BYTES))
        return self._buffers[-1]

    def _may_grow(self, num_bytes: int) -> bool:
        """Whether there may be one buffer more, of *num_bytes* or of the size of those that there are."""
        if self._max_bytes is None or not self._buffers:
            return len(self._buffers) < MAX_BUFFERS
        taken = sum(buffer.num_bytes for buffer in self._buffers)
        return taken + max(num_bytes + ROOM_BYTES, self._buffers[0].num_bytes) <= self._max_bytes

    def _check_size(self, num_bytes: int) -> None:
        if self._max_bytes is not None and num_bytes + ROOM_BYTES > self._max_bytes:
            raise ConfigError(
                f"buffer_bytes={self._max_bytes} is too small for the state of this rank: give at least "
                f"{num_bytes + ROOM_BYTES}, or None"
            )
