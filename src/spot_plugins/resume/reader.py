"""The read of one rank from a committed step: only the bytes that it needs, in parallel, and each one verified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from ..errors import GONE, CorruptCheckpointError, SpotError, StoreError
from ..format.boxes import Box, common, whole
from ..format.commit import NUM_GETS, CommittedStep
from ..format.keys import StepId
from ..format.manifest import Blob, RankManifest, TensorSlice
from ..ranks import Ranks
from ..state import Shard, decode, graft, named
from ..state.dtypes import TORCH_DTYPES
from ..store import ObjectStore
from .manifests import manifest_of, manifests_of, single_manifests_of
from .plausible import UNCHECKED_BYTES, covers, find_nonsense
from .progress import RestoreProgress
from .ranges import Copy, byte_ranges, fetch

_MAX_REASON: Final = 500

Wanted: TypeAlias = Callable[[str, tuple[int, ...]], Shard | None]
"""Returns this rank's shard of a shared tensor, by its name and shape. None: all of it. See ``Registry.wanted``."""


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A complete step in host memory, with every byte verified."""

    step_id: StepId
    world_size: int
    """Number of ranks that saved the step."""
    state: dict[str, Any]
    """State by name of the part."""
    num_bytes: int
    from_local_bytes: int


class _Target(NamedTuple):
    """Memory for a tensor, or for the boxes that this rank reads of it."""

    template: Shard | None
    boxes: tuple[Box, ...]
    memory: torch.Tensor
    """The elements of all boxes one after another, of shape ``(n,)``."""

    def in_box(self, number: int) -> torch.Tensor:
        """Return the memory of box *number*, in its shape."""
        start = sum(box.num_elements for box in self.boxes[:number])
        box = self.boxes[number]
        return self.memory[start : start + box.num_elements].view(box.lengths)

    def tensor(self) -> torch.Tensor:
        """Return the tensor or shard that was read, in the form that its part loads."""
        if self.template is None:
            return self.memory.view(self.boxes[0].lengths)
        return self.template.like(self.memory.view(self.template.local.shape))


class _BlobId(NamedTuple):
    """A blob of the step, by the rank that stored it and its index in the manifest of that rank."""

    rank: int
    blob: int


class StepReader:
    """Reads this rank's share of one committed step."""

    def __init__(
        self,
        store: ObjectStore,
        local: ObjectStore | None,
        committed: CommittedStep,
        ranks: Ranks,
        want: Wanted,
    ) -> None:
        self._store = store
        self._local = local
        self._committed = committed
        self._ranks = ranks
        self._want = want

    def read(self) -> LoadedStep:
        """
        Read and verify everything that this rank needs, then return it.

        Raises:
            CorruptCheckpointError: The step cannot be read, for whatever reason. A store may hold anything, and every
                failure has to leave the way open to the step before.
            IncompatibleCheckpointError: Newer software wrote the step.
            StoreError: The store does not answer.
        """
        try:
            return self._read()
        except SpotError:
            raise
        except Exception as error:
            step_id = self._committed.step_id
            reason = f"cannot be read: {type(error).__name__}: {error}"
            raise CorruptCheckpointError(step_id.step, step_id.prefix, reason[:_MAX_REASON]) from error

    def _read(self) -> LoadedStep:
        # A rank that did not exist when the step was saved begins with the state of rank 0.
        rank = self._ranks.rank if self._ranks.rank < self._committed.world_size else 0
        own = manifest_of(self._store, self._committed, rank)
        self._check([own])
        if self._suffices(own):
            return self._load(own, [own])
        manifests = manifests_of(self._store, self._committed, own)
        try:
            return self._load(own, manifests)
        except StoreError:
            raise
        except Exception:
            single = single_manifests_of(self._store, self._committed)
            if single == manifests:
                raise
        return self._load(own, single)  # the merged copy contradicted the manifest of another rank

    def _load(self, own: RankManifest, manifests: list[RankManifest]) -> LoadedStep:
        """Read what this rank needs by the *manifests*, all that there are or its *own*. Raises as :meth:`read`."""
        step_id, world_size = self._committed.step_id, self._committed.world_size
        if len(manifests) > 1:
            self._check(manifests)
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
            pieces = [
                (each, piece) for each in manifests for piece in each.tensors if piece.shared or each.rank == own.rank
            ]
            blobs = self._used_blobs(pieces)
            self._check_sizes({blob for blob, _ in blobs.values()}, pool)
            targets, copies = self._allocate(pieces)
            ranges = [each for number, found in copies.items() for each in byte_ranges(*blobs[number], found)]
            num_bytes = sum(each.num_bytes for each in ranges)
            were_local = pool.map(lambda each: fetch(each, step_id.step, self._store, self._local), ranges)
            from_local_bytes = 0
            with RestoreProgress(num_bytes, shown=self._ranks.rank == 0) as progress:
                for each, was_local in zip(ranges, were_local, strict=True):
                    from_local_bytes += each.num_bytes if was_local else 0
                    progress.add(each.num_bytes)
        try:
            document = own.state
            if unnamed := {piece.name for _, piece in pieces if piece.shared}.difference(named(document)):
                for manifest in manifests:
                    document = graft(document, manifest.state, unnamed)
            state = decode(document, {name: target.tensor() for name, target in targets.items()})
        except ValueError as error:
            raise CorruptCheckpointError(step_id.step, step_id.prefix, f"holds unreadable state: {error}") from error
        if not isinstance(state, dict):
            raise CorruptCheckpointError(
                step_id.step, step_id.prefix, f"holds a {type(state).__name__} as its state, and not a dict of parts"
            )
        return LoadedStep(step_id, world_size, state, num_bytes, from_local_bytes)

    def _allocate(
        self, pieces: list[tuple[RankManifest, TensorSlice]]
    ) -> tuple[dict[str, _Target], dict[_BlobId, list[Copy]]]:
        """
        Allocate the memory for every tensor, and map the slices to it.

        Returns:
            The targets by name of the tensor, and the copies from each blob.
        """
        by_name: defaultdict[str, dict[Box, tuple[RankManifest, TensorSlice]]] = defaultdict(dict)
        for manifest, piece in pieces:
            by_name[piece.name].setdefault(Box(piece.offsets, piece.lengths), (manifest, piece))
        targets: dict[str, _Target] = {}
        copies: defaultdict[_BlobId, list[Copy]] = defaultdict(list)
        for name, saved in by_name.items():
            first = next(iter(saved.values()))[1]
            template = self._want(name, first.shape) if first.shared else None
            boxes = self._boxes(first)
            memory = torch.empty(sum(box.num_elements for box in boxes), dtype=TORCH_DTYPES[first.dtype])
            targets[name] = target = _Target(template, boxes, memory)
            for number, box in enumerate(boxes):
                for stored, shared in _overlaps(box, saved):
                    manifest, piece = saved[stored]
                    into = target.in_box(number)
                    for dim, (offset, length) in enumerate(zip(_within(box, shared), shared.lengths, strict=True)):
                        into = into.narrow(dim, offset, length)
                    copies[_BlobId(manifest.rank, piece.blob)].append(Copy(piece, _within(stored, shared), into))
        return targets, copies

    def _check(self, manifests: list[RankManifest]) -> None:
        pieces = ((manifest, piece) for manifest in manifests for piece in manifest.tensors)
        if (nonsense := find_nonsense(pieces, complete=len(manifests) == self._committed.world_size)) is not None:
            step_id = self._committed.step_id
            raise CorruptCheckpointError(step_id.step, step_id.prefix, f"makes no sense: {nonsense}")

    def _used_blobs(
        self, pieces: list[tuple[RankManifest, TensorSlice]]
    ) -> dict[_BlobId, tuple[Blob, list[TensorSlice]]]:
        """Return the blobs that *pieces* are in, each with all slices in it that are not empty."""
        blobs: dict[_BlobId, tuple[Blob, list[TensorSlice]]] = {}
        for manifest in {manifest.rank: manifest for manifest, _ in pieces}.values():
            for piece in manifest.tensors:
                number = _BlobId(manifest.rank, piece.blob)
                _, inside = blobs.setdefault(number, (manifest.blobs[piece.blob], []))
                if piece.stop > piece.start:
                    inside.append(piece)
        return {number: blobs[number] for number in {_BlobId(manifest.rank, piece.blob) for manifest, piece in pieces}}

    def _check_sizes(self, blobs: set[Blob], pool: ThreadPoolExecutor) -> None:
        """Compare large blobs with what is stored before memory is allocated for them: one byte is read of each."""
        large = {blob for blob in blobs if blob.num_bytes > UNCHECKED_BYTES}
        for blob, is_there in zip(large, pool.map(self._has_last_byte, large), strict=True):
            if not is_there:
                step_id = self._committed.step_id
                raise CorruptCheckpointError(step_id.step, blob.key, f"has not {blob.num_bytes} bytes")

    def _has_last_byte(self, blob: Blob) -> bool:
        """Return False if *blob* is smaller than its manifest says. If a store does not answer, that is found later."""
        is_gone = True
        for store in (self._local, self._store):
            if store is not None:
                try:
                    return store.get_into(blob.key, blob.num_bytes - 1, [memoryview(bytearray(1))]) == 1
                except StoreError:
                    is_gone = False
                except KeyError:
                    pass
        if is_gone:
            raise CorruptCheckpointError(self._committed.step_id.step, blob.key, GONE)
        return True

    def _suffices(self, own: RankManifest) -> bool:
        """Return True if this rank stored everything that it reads, so that no other manifest is needed."""
        if self._committed.world_size == 1:
            return True
        if self._committed.world_size != self._ranks.world_size:
            return False
        stored: defaultdict[str, list[TensorSlice]] = defaultdict(list)
        for piece in own.tensors:
            stored[piece.name].append(piece)
        for name in set(named(own.state)):
            pieces = stored.get(name)
            if pieces is None:
                return False
            boxes = {Box(piece.offsets, piece.lengths) for piece in pieces}
            if not all(covers({common(box, wanted) for box in boxes}, wanted) for wanted in self._boxes(pieces[0])):
                return False
        return True

    def _boxes(self, piece: TensorSlice) -> tuple[Box, ...]:
        """Return the boxes that this rank reads of the tensor of *piece*."""
        template = self._want(piece.name, piece.shape) if piece.shared else None
        return (whole(piece.shape),) if template is None else template.boxes.held


def _overlaps(box: Box, saved: Collection[Box]) -> Iterator[tuple[Box, Box]]:
    """Yield the saved boxes that have elements of *box*, each with what it has of them."""
    for stored in (box,) if box in saved else saved:  # an equal one is usual, and the others have no part of it
        shared = common(stored, box)
        if shared.num_elements:
            yield stored, shared


def _within(box: Box, part: Box) -> tuple[int, ...]:
    """Return the offsets of *part* within *box*."""
    return tuple(offset - first for offset, first in zip(part.offsets, box.offsets, strict=True))
