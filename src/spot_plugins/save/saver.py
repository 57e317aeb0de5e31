"""From live objects to a staged step in the pusher's hands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from ..events import EventBus, Staged
from ..format.manifest import Json, TensorSlice
from ..push import BlobImage, Pusher, PushJob
from ..ranks import Ranks
from ..schedule import Trigger
from ..state.live_tensor import Changes, LiveTensor
from ..state.registry import Registry
from .buffers import Buffers
from .copier import Copier, TornError
from .frozen import FrozenSet
from .layout import Layout, plan_layout, signature
from .shared_buffer import SharedBuffer
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

CLOSE_S: Final = 60.0  # longest wait for a copy that is under way


class Blobs(NamedTuple):
    """Finished images of blobs: all of a layout."""

    buffer: SharedBuffer
    layout: Layout
    is_frozen: bool
    """Whether they are stored under their own content, for other steps as well."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(size for _, size in self.layout.blobs)

    def images(self) -> Iterator[BlobImage]:
        """Yield where they are."""
        for offset, size in self.layout.blobs:
            yield BlobImage(buffer=self.buffer.number, offset=offset, num_bytes=size, is_frozen=self.is_frozen)


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step in host memory, or on its way there."""

    step: int
    trigger: Trigger
    state: Json
    blobs: tuple[Blobs, ...]
    frozen: dict[str, LiveTensor]
    """What is not trained."""
    watch: FrozenSet | None
    """What is known of it, if it is stored for several steps."""
    stall_s: float
    """Seconds that training stood still to begin it."""
    begun_at: float
    """Monotonic time."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs that are staged."""
        return sum(each.num_bytes for each in self.blobs)

    @property
    def buffers(self) -> dict[int, SharedBuffer]:
        """Where they are, by number."""
        return {each.buffer.number: each.buffer for each in self.blobs}


class Saver:
    """
    Stages steps into shared buffers and hands them to the pusher.

    Args:
        parts: What is saved.
        ranks: The processes of the job.
        pusher: Who pushes it.
        bus: Gets the events.
        max_bytes: Most host memory that staged steps may take on this rank. None: room for two steps.
    """

    def __init__(
        self,
        parts: Registry,
        ranks: Ranks,
        pusher: Pusher,
        bus: EventBus,
        max_bytes: int | None = None,
    ) -> None:
        self._parts = parts
        self._ranks = ranks
        self._pusher = pusher
        self._bus = bus
        self._buffers = Buffers(pusher, max_bytes)
        self._copier = Copier()
        self._overlaps = True
        self._is_prepared = threading.Event()
        self._is_prepared.set()
        self._layouts: dict[bool, tuple[Hashable, Layout]] = {}
        self._watch: FrozenSet | None = None
        self._num_watched = 0
        self._keeps_changing = False
        """Whether what should be frozen is not: then it is saved with every step."""

    def prepare(self) -> None:
        """
        Make the first buffers, in the background, so that the first save need not.

        Raises:
            UnsafeStateError, ConfigError: As :meth:`save`.
        """
        if self._layouts:
            return  # there was a save before
        _, active, frozen = self._capture()
        num_bytes = self._plan(active, frozen=False).num_bytes
        num_frozen_bytes = self._plan(frozen, frozen=True).num_bytes if frozen else 0
        self._buffers.check_size(num_bytes)
        self._is_prepared.clear()

        def make() -> None:
            try:
                self._buffers.prepare(num_bytes, num_frozen_bytes)
            finally:
                self._is_prepared.set()

        self._copier.do(make)

    def save(self, step: int, trigger: Trigger, deadline: float) -> None:
        """
        Save the state as it is now. What only the step of an optimizer changes is copied until the next one begins.

        Waits only when all buffers are still being pushed, until *deadline* (monotonic).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            ConfigError: It does not fit into the memory that it is given.
            StoreError: No buffer became free in time.
        """
        staged, snapshot = self._begin(step, trigger, deadline)
        self._pusher.announce(step, staged.buffers)
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
        while True:
            staged, snapshot = self._begin(step, trigger, deadline)
            snapshot.issue()
            snapshot.hold_back()
            snapshot.wait()
            if (settled := self._settle_frozen(staged)) is not None:
                self._tell_staged(settled, 0.0)
                return settled

    def push(self, staged: StagedStep) -> None:
        """Hand *staged* to the pusher, which owns its buffers until the step is committed or abandoned."""
        tensors: list[TensorSlice] = []
        images: list[BlobImage] = []
        for blobs in staged.blobs:
            first = len(images)
            tensors += (replace(each, blob=each.blob + first) if first else each for each in blobs.layout.slices)
            images += blobs.images()
        job = PushJob(
            step=staged.step,
            blobs=tuple(images),
            tensors=tuple(tensors),
            state=staged.state,
            frozen=None if staged.watch is None else staged.watch.number,
        )
        self._pusher.submit(job, staged.buffers)

    def fence(self) -> None:
        """Wait until nothing depends on live state any more: weights may now be changed by anyone."""
        self._copier.fence()

    @property
    def has_room(self) -> bool:
        """Whether :meth:`stage` would find a buffer without waiting."""
        return self._buffers.has_room

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Hand over what is being copied, and let go of all buffers. The pusher keeps its own mappings."""
        if self._copier.close(timeout_s):
            self._buffers.close()
        else:  # its device hangs: then nothing can be taken from under it
            logger.error("a copy from the device does not end; it is left alone")

    def _begin(self, step: int, trigger: Trigger, deadline: float) -> tuple[StagedStep, Snapshot]:
        started = time.monotonic()
        self._copier.fence()  # at most one copy at a time: it is done, or the optimizer's step would not be
        self._is_prepared.wait()
        document, active, frozen = self._capture()
        layout = self._plan(active, frozen=False)
        blobs = [Blobs(self._buffers.take(layout.num_bytes, deadline), layout, is_frozen=False)]
        snapshot = Snapshot(blobs[0].buffer, layout, active)
        watch = self._watch_over(frozen)
        if frozen and (watch is None or not self._pusher.knows_frozen(watch.number)):
            layout = self._plan(frozen, frozen=True)
            blobs.append(Blobs(self._buffers.take_frozen(layout.num_bytes), layout, is_frozen=watch is not None))
            snapshot.add(blobs[1].buffer, layout, frozen)
        else:
            self._buffers.retire()
        stall_s = time.monotonic() - started
        return StagedStep(step, trigger, document, tuple(blobs), frozen, watch, stall_s, started), snapshot

    def _capture(self) -> tuple[Json, dict[str, LiveTensor], dict[str, LiveTensor]]:
        """Return the state, the tensors that may change, and those that are frozen."""
        document, sources = self._parts.capture(self._ranks.world_size)
        frozen = {name: source for name, source in sources.items() if source.changes is Changes.NEVER}
        active = {name: source for name, source in sources.items() if name not in frozen} if frozen else sources
        return document, active, frozen

    def _watch_over(self, frozen: dict[str, LiveTensor]) -> FrozenSet | None:
        """Return what watches over *frozen*; None if there is nothing, or if it was seen to change."""
        if not frozen or self._keeps_changing:
            return None
        layout = self._plan(frozen, frozen=True)
        watch = self._watch
        if watch is not None and watch.is_of(layout):
            if not watch.is_in_place(frozen):
                self._keeps_changing = True
                return None
            if self._pusher.knows_frozen(watch.number):
                return watch
        self._num_watched += 1
        self._watch = FrozenSet(self._num_watched, layout, frozen)
        return self._watch

    def _settle_frozen(self, staged: StagedStep) -> StagedStep | None:
        """
        Return *staged*, fit to be pushed; None if the frozen blobs of an earlier step are not what it has now.

        If what should be frozen has changed since it was staged here, it is of this step alone.
        """
        if staged.watch is None:
            return staged
        brought = [blobs for blobs in staged.blobs if blobs.is_frozen]
        for blobs in brought:
            staged.watch.remember(blobs.buffer)
        if staged.watch.has_same_values(staged.frozen):
            return staged
        self._keeps_changing = True
        logger.warning("weights without gradients change all the same, so they are stored with each step")
        if not brought:
            return None
        return replace(staged, watch=None, blobs=tuple(blobs._replace(is_frozen=False) for blobs in staged.blobs))

    def _finish(self, staged: StagedStep, waited_s: float, error: Exception | None) -> None:
        if isinstance(error, TornError):
            self._overlaps = False
            logger.warning("%s. From now on each save copies everything before training goes on", error)
        if error is not None:
            self._pusher.abandon(staged.step, f"it could not be copied: {error}")
        elif (settled := self._settle_frozen(staged)) is not None:
            self._tell_staged(settled, waited_s)
            self.push(settled)
        else:
            reason = "weights without gradients have changed since they were stored"
            self._pusher.abandon(staged.step, reason)

    def _tell_staged(self, staged: StagedStep, waited_s: float) -> None:
        event = Staged(
            step=staged.step,
            trigger=staged.trigger,
            num_bytes=staged.num_bytes,
            stall_s=staged.stall_s + waited_s,
            copy_s=time.monotonic() - staged.begun_at,
        )
        logger.info("staged step %s (%s), %.3f s, %s bytes", event.step, event.trigger, event.stall_s, event.num_bytes)
        self._bus.emit(event)

    def _plan(self, sources: dict[str, LiveTensor], *, frozen: bool) -> Layout:
        """Return the layout. That of frozen ones is apart, so that ranks agree on it whatever each of them stores."""
        new = signature(sources)
        known, layout = self._layouts.get(frozen, (None, None))
        if layout is None or new != known:
            layout = plan_layout(sources, self._ranks.rank)
            self._layouts[frozen] = new, layout
        return layout
