"""Bytes of blobs, straight into the memory of the tensors that they belong to, and verified there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
import xxhash

from ..errors import GONE, CorruptCheckpointError, StoreError
from ..format.manifest import Blob, RankManifest, TensorSlice, hash_of_blob
from ..state.dtypes import TORCH_DTYPES
from ..store import LocalStore, ObjectStore, patiently

MAX_RANGE_BYTES: Final = 16 * 1024**2  # of one request; some of them are under way at a time


class Copy(NamedTuple):
    """A box of a slice, and where it goes."""

    piece: TensorSlice
    offsets: tuple[int, ...]
    """Within the slice."""
    target: torch.Tensor

    @property
    def is_whole(self) -> bool:
        """Whether all of the slice goes there as it is."""
        return self.target.is_contiguous() and tuple(self.target.shape) == self.piece.lengths


class ByteRange(NamedTuple):
    """Slices that lie side by side in a blob and are read at once."""

    blob: Blob
    start: int
    """First byte within the blob: of the first slice, or 0 if the header is read as well."""
    pieces: list[TensorSlice]
    copies: dict[TensorSlice, list[Copy]]
    inside: list[TensorSlice]
    """All slices of the blob if the header is read as well, else none."""

    @property
    def num_bytes(self) -> int:
        """How many bytes are read."""
        return self.pieces[-1].stop - self.start


def byte_ranges(manifest: RankManifest, number: int, copies: list[Copy]) -> Iterator[ByteRange]:
    """Yield what has to be read of blob *number* for *copies*. Its header is read with the rest of all of it."""
    by_piece: dict[TensorSlice, list[Copy]] = {copy.piece: [] for copy in copies}
    for copy in copies:
        by_piece[copy.piece].append(copy)
    needed = sorted(by_piece, key=lambda piece: piece.start)
    inside = [piece for piece in manifest.tensors if piece.blob == number and piece.stop > piece.start]
    is_whole = len(needed) == len(inside)
    first = 0
    for last, piece in enumerate(needed, start=1):
        follows = last < len(needed) and needed[last].start == piece.stop
        if follows and needed[last].stop - needed[first].start <= MAX_RANGE_BYTES:
            continue
        pieces = needed[first:last]
        with_header = is_whole and first == 0
        yield ByteRange(
            blob=manifest.blobs[number],
            start=0 if with_header else pieces[0].start,
            pieces=pieces,
            copies={each: by_piece[each] for each in pieces},
            inside=inside if with_header else [],
        )
        first = last


def fetch(run: ByteRange, step: int, store: ObjectStore, local: LocalStore | None) -> bool:
    """
    Read *run*, verify it, and put what is in it where it belongs.

    Returns:
        Whether an intact copy on the local disk gave it.

    Raises:
        CorruptCheckpointError: It is damaged or gone, in the store as well.
        StoreError: The store does not answer.
    """
    header = bytearray(run.pieces[0].start - run.start)
    memory = [_memory_for(piece, run.copies[piece]) for piece in run.pieces]
    beyond = bytearray(run.pieces[-1].stop == run.blob.num_bytes)  # a byte behind the end, where none should be
    targets = [memoryview(each).cast("B") for each in (header, *memory, beyond)]
    damage: str | None = None
    for source in (local, store):
        if source is None:
            continue
        try:
            damage = _read(run, source, targets, patient=source is store)
        except (KeyError, StoreError) as error:
            if source is local:
                continue
            if isinstance(error, StoreError):
                raise
            damage = GONE
        if damage is None:
            for piece, image in zip(run.pieces, memory, strict=True):
                if isinstance(image, bytearray):
                    _copy(piece, image, run.copies[piece])
            return source is local
    assert damage is not None
    raise CorruptCheckpointError(step, run.blob.key, damage)


def _read(run: ByteRange, source: ObjectStore, targets: list[memoryview], *, patient: bool) -> str | None:
    """Fill *targets* from *source*. Return how the bytes differ from what the manifest says, or None."""

    def read() -> int:
        return source.get_into(run.blob.key, run.start, targets)

    count = patiently(read) if patient else read()
    if count != run.num_bytes:
        found = f"{count} bytes" if count < run.num_bytes else "more bytes"
        return f"has {found} instead of {run.num_bytes}, from byte {run.start}"
    header, *images, _ = targets
    intact = all(
        xxhash.xxh3_128_hexdigest(image) == piece.xxh3_128 for piece, image in zip(run.pieces, images, strict=True)
    )
    if intact and run.inside:
        intact = hash_of_blob(header, run.inside) == run.blob.xxh3_128
    return None if intact else "has changed since it was written: its hash differs"


def _memory_for(piece: TensorSlice, copies: list[Copy]) -> bytearray | ctypes.Array[ctypes.c_char]:
    """Return the memory of the tensor that *piece* goes to as it is, or else some to copy it from."""
    if len(copies) == 1 and copies[0].is_whole:
        return (ctypes.c_char * (piece.stop - piece.start)).from_address(copies[0].target.data_ptr())
    return bytearray(piece.stop - piece.start)


def _copy(piece: TensorSlice, image: bytearray, copies: list[Copy]) -> None:
    source = torch.frombuffer(image, dtype=torch.uint8).view(TORCH_DTYPES[piece.dtype]).view(piece.lengths)
    for _, offsets, target in copies:
        box = source
        for dim, (offset, length) in enumerate(zip(offsets, target.shape, strict=True)):
            box = box.narrow(dim, offset, length)
        target.copy_(box)
