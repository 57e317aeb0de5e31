"""A step in host memory, and its description for the pusher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..format.manifest import Json, TensorSlice
from ..push import BlobImage, FrozenUse, PushJob
from ..schedule import Trigger
from ..state.live_tensor import LiveTensor
from .frozen import StagedFrozen
from .layout import Layout
from .shared_buffer import SharedBuffer


class Blobs(NamedTuple):
    """Finished images of all blobs of a layout."""

    buffer: SharedBuffer
    layout: Layout
    is_frozen: bool
    """True if they are stored under keys of their content, so that other steps can share them."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(size for _, size in self.layout.blobs)

    def images(self) -> Iterator[BlobImage]:
        """Yield their positions."""
        for offset, size in self.layout.blobs:
            yield BlobImage(buffer=self.buffer.number, offset=offset, num_bytes=size, is_frozen=self.is_frozen)


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step in host memory, or on its way there."""

    step: int
    trigger: Trigger
    state: Json
    blobs: tuple[Blobs, ...]
    frozen: StagedFrozen
    stall_s: float
    """Seconds that training stood still to begin it."""
    begun_at: float
    """Monotonic time."""
    shared: Mapping[str, LiveTensor] = field(default_factory=dict)
    """The tensors that every rank holds whole, if blobs of this rank's own are apart. Empty in every other save."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs that are staged."""
        return sum(each.num_bytes for each in self.blobs)

    @property
    def num_skipped_bytes(self) -> int:
        """Bytes of the frozen blobs that it refers to, which an earlier step has stored."""
        if self.frozen.set is None or self.frozen.use is not FrozenUse.REFERS:
            return 0
        return sum(size for _, size in self.frozen.set.layout.blobs)

    @property
    def can_be_finished(self) -> bool:
        """True if another rank can store the shared blobs, because all ranks hold these tensors and stand still."""
        return bool(self.shared) and (self.frozen.use is not FrozenUse.NONE or not self.frozen.live)

    @property
    def buffers(self) -> dict[int, SharedBuffer]:
        """Its buffers, by number."""
        return {each.buffer.number: each.buffer for each in self.blobs}

    def checked(self) -> StagedStep | None:
        """
        Compare the frozen tensors, after the copy, with those that the step would be stored with.

        Returns:
            This step if they are the same. If they have changed since they were staged here, a step that stores them as
            its own. None if they have changed since an earlier step stored them, so that this one lacks them.
        """
        frozen = self.frozen
        if frozen.set is None:
            return self
        if frozen.use is FrozenUse.BRINGS:
            for each in self.blobs:
                if each.is_frozen:
                    frozen.set.take_sample(each.buffer)
        if frozen.set.check(frozen.live, values_by=self.blobs[-1].buffer):
            return self
        if frozen.use is FrozenUse.REFERS:
            return None
        own = tuple(each._replace(is_frozen=False) for each in self.blobs)
        return replace(self, frozen=replace(frozen, use=FrozenUse.NONE, set=None), blobs=own)

    def job(self) -> PushJob:
        """Return the description for the pusher."""
        tensors: list[TensorSlice] = []
        images: list[BlobImage] = []
        for blobs in self.blobs:
            first = len(images)
            tensors += (replace(each, blob=each.blob + first) if first else each for each in blobs.layout.slices)
            images += blobs.images()
        return PushJob(
            step=self.step,
            blobs=tuple(images),
            tensors=tuple(tensors),
            state=self.state,
            frozen_use=self.frozen.use,
            frozen_set=self.frozen.number,
            is_prepared=self.can_be_finished,
        )


def share_job(step: int, rank: int, blobs: Blobs) -> PushJob:
    """Return the description of the shared *blobs* of another *rank* for the pusher."""
    return PushJob(step=step, blobs=tuple(blobs.images()), tensors=blobs.layout.slices, state=None, of_rank=rank)
