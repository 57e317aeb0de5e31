"""From live objects to a staged step that the pusher has."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from typing import Final

from ..events import EventBus, Staged
from ..format.boxes import whole
from ..format.manifest import Json
from ..push import FrozenUse, Pusher
from ..ranks import Ranks
from ..schedule import Trigger
from ..state.collection import no_collection
from ..state.live_tensor import Changes, LiveTensor
from ..state.registry import Registry
from .buffers import Buffers
from .copier import COPY_S, Copier, TornError, stuck_copy
from .frozen import FrozenSets, StagedFrozen
from .layout import Layout, plan_layout, signature
from .snapshot import Snapshot
from .staged import Blobs, StagedStep, share_job

logger = logging.getLogger(__name__)

NO_MEMORY: Final = (OSError, MemoryError)
"""Errors of a system that has no memory or no descriptor for a buffer. Training continues without the save."""

PREPARE_S: Final = 30.0  # longest wait for memory, except after a notice: 100 GB take as long
CLOSE_S: Final = 60.0  # longest wait for a copy that is under way


class Saver:
    """
    Stages steps into shared buffers and hands them to the pusher.

    Args:
        parts: The objects to save.
        ranks: The processes of the job.
        pusher: Gets the staged steps.
        bus: Gets the events.
        max_bytes: Most host memory that staged steps may take on this rank. None: room for two steps.
        grows_blobs: Whether the blobs of a large state are larger. Those of frozen tensors, whose names are their
            hashes, stay as they are.
    """

    def __init__(
        self,
        parts: Registry,
        ranks: Ranks,
        pusher: Pusher,
        bus: EventBus,
        max_bytes: int | None = None,
        *,
        grows_blobs: bool = False,
    ) -> None:
        self._parts = parts
        self._ranks = ranks
        self._pusher = pusher
        self._bus = bus
        self._copier = Copier()
        self._buffers = Buffers(pusher, max_bytes, self._copier.do)
        self._grows_blobs = grows_blobs
        self._overlaps = True
        self._layouts: dict[bool, tuple[Hashable, Layout]] = {}
        self._frozen_sets = FrozenSets()

    def prepare(self) -> int:
        """
        Begin to make the first buffers on the copying thread, so that the first save need not wait for them.

        The state is taken in any case, because the first step is the first moment at which an optimizer has one.

        Returns:
            The bytes of the first save on this rank.

        Raises:
            UnsafeStateError, ConfigError: See :meth:`save`.
        """
        has_buffers = bool(self._layouts)  # of a save, or of a pause before the first step
        _, active, frozen = self._capture()
        num_bytes = self._layout_of(active, frozen=False).num_bytes
        num_frozen_bytes = self._layout_of(frozen, frozen=True).num_bytes if frozen else 0
        self._buffers.check_size(num_bytes)
        if not has_buffers:
            self._buffers.prepare(num_bytes, num_frozen_bytes)
        return num_bytes + num_frozen_bytes

    def save(self, step: int, trigger: Trigger, deadline: float) -> None:
        """
        Save the state as it is now. Whatever only an optimizer changes is copied until its next step begins.

        Waits only if all buffers are still being pushed, until *deadline* (monotonic).

        Raises:
            UnsafeStateError: Some state has no pickle-free form.
            ConfigError: It does not fit into the memory that it is given, or that the machine has.
            StoreError: No buffer became free, or was made, in time.
            OSError, MemoryError: The system has no memory for a buffer. See :meth:`give_up`.
        """
        staged, snapshot = self._begin(step, trigger, deadline)
        self._pusher.announce(step, staged.buffers)
        if snapshot.is_complete:
            self._finish(staged, 0.0, None)
            return
        self._copier.complete(snapshot, lambda waited_s, error: self._finish(staged, waited_s, error))
        if not self._overlaps:
            self._copier.fence()

    def stage(self, step: int, trigger: Trigger, deadline: float, *, is_last: bool = False) -> StagedStep:
        """
        Copy all of the state as it is now into a free buffer, and keep it there.

        Waits and raises as :meth:`save`.

        Args:
            step: The step.
            trigger: The reason of the save.
            deadline: The end of the wait (monotonic) for a buffer.
            is_last: Whether all ranks stand still until they leave, so that one may store the share of another.
        """
        while True:
            staged, snapshot = self._begin(step, trigger, deadline, is_last=is_last)
            _complete(snapshot)
            if (checked := self._check_frozen(staged)) is not None:
                self._emit_staged(checked, 0.0)
                return checked

    def stage_share(self, staged: StagedStep, rank: int, deadline: float) -> None:
        """
        Copy what *rank* stores of the shared tensors, for the step that was *staged* last, and hand it to the pusher.

        Nothing may have changed since. Waits until *deadline* (monotonic) for the buffer of the share of this rank, and
        raises as :meth:`save`.
        """
        layout = plan_layout(staged.shared, rank, grows=self._grows_blobs)
        buffer = self._buffers.take_again(layout.num_bytes, deadline)
        _complete(Snapshot(buffer, layout, staged.shared))
        job = share_job(staged.step, rank, Blobs(buffer, layout, is_frozen=False))
        self._pusher.finish_share(job, buffer.number, buffer)

    def push(self, staged: StagedStep) -> None:
        """Hand *staged* to the pusher, which owns its buffers until the step is committed or abandoned."""
        self._pusher.submit(staged.job(), staged.buffers)

    def give_up(self, step: int, error: BaseException) -> None:
        """Report that *step* will not be saved, because of *error*, one of :data:`NO_MEMORY`."""
        self._pusher.announce(step, ())
        self._pusher.abandon(step, f"there is no memory for it: {str(error) or type(error).__name__}")

    def fence(self, *, copied: bool = False) -> None:
        """
        Wait until no copy reads live state any more. With *copied*, wait until nothing of a save uses a device.

        Raises:
            RuntimeError: The copy hangs, or the current stream is captured as a CUDA graph.
        """
        self._copier.fence()
        # wait: COPY_S; training ends, because a copy beside a capture may invalidate the graph
        if copied and not self.wait_copied(time.monotonic() + COPY_S):
            raise RuntimeError(stuck_copy())

    def wait_copied(self, deadline: float) -> bool:
        """Wait until every copy is handed over or has failed, or until *deadline* (monotonic). Return whether it is."""
        return self._copier.wait_done(deadline)

    @property
    def has_room(self) -> bool:
        """True if :meth:`stage` would find a buffer without waiting."""
        return self._buffers.has_room

    def close(self) -> None:
        """Hand over the step that is being copied, and close all buffers. The pusher keeps its own mappings."""
        self._buffers.close()
        if not self._copier.close(CLOSE_S):  # its device hangs, and may still write into the buffers
            logger.error(
                "a copy from the device does not end, so its memory is not released. Look at the device and its driver"
            )

    def _begin(
        self, step: int, trigger: Trigger, deadline: float, *, is_last: bool = False
    ) -> tuple[StagedStep, Snapshot]:
        started = time.monotonic()
        self._copier.fence()  # at most one copy at a time: it is done, or the optimizer's step would not be
        make_by = deadline if trigger == "notice" else max(deadline, started + PREPARE_S)
        document, active, live_frozen = self._capture()
        layout, shared = self._layout_of(active, frozen=False), self._shared_whole(active) if is_last else {}
        if shared:
            apart = plan_layout(active, self._ranks.rank, grows=self._grows_blobs, own_apart=True)
            # A few kB more for the blobs apart must never be the reason why the last step is lost.
            layout, shared = (apart, shared) if self._buffers.fits(apart.num_bytes) else (layout, {})
        buffer = self._buffers.take(layout.num_bytes, deadline=deadline, make_by=make_by)
        blobs = [Blobs(buffer, layout, is_frozen=False)]
        snapshot = Snapshot(blobs[0].buffer, layout, active)
        frozen = StagedFrozen(live={}, use=FrozenUse.NONE)
        if live_frozen:
            layout = self._layout_of(live_frozen, frozen=True)
            frozen = self._frozen_sets.stage(live_frozen, layout, self._pusher.ledger.knows_frozen)
        if live_frozen and frozen.use is not FrozenUse.REFERS:
            buffer = self._buffers.take_frozen(layout.num_bytes, make_by=make_by)
            blobs.append(Blobs(buffer, layout, is_frozen=frozen.use is FrozenUse.BRINGS))
            snapshot.add(buffer, layout, live_frozen)
        else:
            snapshot.begin_on({each.tensor.device for each in live_frozen.values()}, buffer)
            self._buffers.retire()
        stall_s = time.monotonic() - started
        return StagedStep(step, trigger, document, tuple(blobs), frozen, stall_s, started, shared), snapshot

    def _capture(self) -> tuple[Json, dict[str, LiveTensor], dict[str, LiveTensor]]:
        """Return the state, the tensors that may change, and the frozen ones."""
        document, live = self._parts.capture(self._ranks.world_size)
        frozen = {name: each for name, each in live.items() if each.changes is Changes.NEVER}
        active = {name: each for name, each in live.items() if name not in frozen} if frozen else live
        return document, active, frozen

    def _shared_whole(self, active: dict[str, LiveTensor]) -> dict[str, LiveTensor]:
        """Return the tensors that the ranks share, if every rank holds each of them whole. Otherwise return none."""
        shared = {name: each for name, each in active.items() if each.boxes is not None}
        everybody = tuple(range(self._ranks.world_size))
        is_whole = len(everybody) > 1 and all(
            boxes.holders == everybody and boxes.held == (whole(boxes.shape),)
            for boxes in (each.boxes for each in shared.values())
            if boxes is not None
        )
        return shared if is_whole else {}

    def _finish(self, staged: StagedStep, waited_s: float, error: Exception | None) -> None:
        """Hand *staged* over after its copy, or abandon it because of *error*. On the copying thread, mostly."""
        if isinstance(error, TornError):
            self._overlaps = False
            logger.warning("%s. From now on each save copies everything before training continues", error)
        if error is not None:
            self._pusher.abandon(staged.step, f"it could not be copied: {error}")
        elif (checked := self._check_frozen(staged)) is not None:
            self._emit_staged(checked, waited_s)
            self.push(checked)
        else:
            reason = "weights without gradients have changed since they were stored"
            self._pusher.abandon(staged.step, reason)

    def _check_frozen(self, staged: StagedStep) -> StagedStep | None:
        """Return *staged* as it is to be pushed. See :meth:`.StagedStep.checked`."""
        checked = staged.checked()
        if checked is not staged:
            logger.warning("weights without gradients change all the same, so they are stored with each step")
        return checked

    def _emit_staged(self, staged: StagedStep, waited_s: float) -> None:
        event = Staged(
            step=staged.step,
            trigger=staged.trigger,
            num_bytes=staged.num_bytes,
            stall_s=staged.stall_s + waited_s,
            copy_s=time.monotonic() - staged.begun_at,
            num_skipped_bytes=staged.num_skipped_bytes,
        )
        logger.info("staged step %s (%s), %.3f s, %s bytes", event.step, event.trigger, event.stall_s, event.num_bytes)
        self._bus.emit(event)

    def _layout_of(self, live: dict[str, LiveTensor], *, frozen: bool) -> Layout:
        """Return the layout. Frozen tensors have their own, so that ranks agree on it whatever each of them stores."""
        with no_collection():
            new = signature(live)
            known, layout = self._layouts.get(frozen, (None, None))
            if layout is None or new != known:
                layout = plan_layout(live, self._ranks.rank, grows=self._grows_blobs and not frozen)
                self._layouts[frozen] = new, layout
            return layout


def _complete(snapshot: Snapshot) -> None:
    """Copy the rest of *snapshot*, and wait for it."""
    snapshot.issue()
    snapshot.hold_back()
    # wait: until the device has copied; a device that hangs stops the training itself
    snapshot.wait()
