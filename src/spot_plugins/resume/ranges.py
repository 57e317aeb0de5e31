"""Byte ranges of blobs, which are read into the memory of their tensors and verified there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
import xxhash

from ..errors import GONE, CorruptCheckpointError, StoreError
from ..format.manifest import Blob, TensorSlice, hash_of_blob
from ..state.dtypes import TORCH_DTYPES
from ..store import ObjectStore, patiently

MAX_RANGE_BYTES: Final = 16 * 1024**2  # largest request; several are in progress at a time


class Copy(NamedTuple):
    """A box of a slice, and the tensor into which it is copied."""

    piece: TensorSlice
    offsets: tuple[int, ...]
    """Offsets of the box within the slice."""
    target: torch.Tensor

    @property
    def is_whole(self) -> bool:
        """True if the bytes of the slice are exactly those of the target."""
        return self.target.is_contiguous() and tuple(self.target.shape) == self.piece.lengths


class ByteRange(NamedTuple):
    """Adjacent slices of a blob that are read with one request."""

    blob: Blob
    start: int
    """First byte within the blob. It is 0 if the header is read too."""
    pieces: list[TensorSlice]
    copies: dict[TensorSlice, list[Copy]]
    inside: list[TensorSlice]
    """All slices of the blob if the header is read too, else an empty list."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes that are read."""
        return self.pieces[-1].stop - self.start


def byte_ranges(blob: Blob, inside: list[TensorSlice], copies: list[Copy]) -> Iterator[ByteRange]:
    """Yield the byte ranges of *blob* for *copies*. The header is read only if all slices *inside* the blob are."""
    by_piece: dict[TensorSlice, list[Copy]] = {copy.piece: [] for copy in copies}
    for copy in copies:
        by_piece[copy.piece].append(copy)
    needed = sorted(by_piece, key=lambda piece: piece.start)
    is_whole = len(needed) == len(inside)
    first = 0
    for last, piece in enumerate(needed, start=1):
        follows = last < len(needed) and needed[last].start == piece.stop
        if follows and needed[last].stop - needed[first].start <= MAX_RANGE_BYTES:
            continue
        pieces = needed[first:last]
        with_header = is_whole and first == 0
        yield ByteRange(
            blob=blob,
            start=0 if with_header else pieces[0].start,
            pieces=pieces,
            copies={each: by_piece[each] for each in pieces},
            inside=inside if with_header else [],
        )
        first = last


def fetch(byte_range: ByteRange, step: int, store: ObjectStore, local: ObjectStore | None) -> bool:
    """
    Read *byte_range*, verify it, and copy its slices into their tensors.

    Returns:
        True if an intact copy on the local disk was read.

    Raises:
        CorruptCheckpointError: The bytes are damaged or missing, in the store too.
        StoreError: The store does not answer.
    """
    header = bytearray(byte_range.pieces[0].start - byte_range.start)
    memory = [_memory_for(piece, byte_range.copies[piece]) for piece in byte_range.pieces]
    beyond = bytearray(
        byte_range.pieces[-1].stop == byte_range.blob.num_bytes
    )  # a byte after the end, to find a longer blob
    targets = [memoryview(each).cast("B") for each in (header, *memory, beyond)]
    damage: str | None = None
    for candidate in (local, store):
        if candidate is None:
            continue
        try:
            damage = _read(byte_range, candidate, targets, patient=candidate is store)
        except (KeyError, StoreError) as error:
            if candidate is local:
                continue
            if isinstance(error, StoreError):
                raise
            damage = GONE
        if damage is None:
            for piece, image in zip(byte_range.pieces, memory, strict=True):
                if isinstance(image, bytearray):
                    _copy(piece, image, byte_range.copies[piece])
            return candidate is local
    assert damage is not None
    raise CorruptCheckpointError(step, byte_range.blob.key, damage)


def _read(byte_range: ByteRange, store: ObjectStore, targets: list[memoryview], *, patient: bool) -> str | None:
    """Fill *targets* from *store*. Return a description of the damage, or None if the bytes are intact."""

    def read() -> int:
        return store.get_into(byte_range.blob.key, byte_range.start, targets)

    count = patiently(read) if patient else read()
    if count != byte_range.num_bytes:
        found = f"{count} bytes" if count < byte_range.num_bytes else "more bytes"
        return f"has {found} instead of {byte_range.num_bytes}, from byte {byte_range.start}"
    header, *images, _ = targets
    intact = all(
        xxhash.xxh3_128_hexdigest(image) == piece.xxh3_128
        for piece, image in zip(byte_range.pieces, images, strict=True)
    )
    if intact and byte_range.inside:
        intact = hash_of_blob(header, byte_range.inside) == byte_range.blob.xxh3_128
    return None if intact else "has changed since it was written: its hash differs"


def _memory_for(piece: TensorSlice, copies: list[Copy]) -> bytearray | ctypes.Array[ctypes.c_char]:
    """Return the memory of the tensor if the bytes of *piece* are exactly its bytes, else a buffer to copy from."""
    if len(copies) == 1 and copies[0].is_whole:
        return (ctypes.c_char * (piece.stop - piece.start)).from_address(copies[0].target.data_ptr())
    return bytearray(piece.stop - piece.start)


def _copy(piece: TensorSlice, image: bytearray, copies: list[Copy]) -> None:
    tensor = torch.frombuffer(image, dtype=torch.uint8).view(TORCH_DTYPES[piece.dtype]).view(piece.lengths)
    for _, offsets, target in copies:
        box = tensor
        for dim, (offset, length) in enumerate(zip(offsets, target.shape, strict=True)):
            box = box.narrow(dim, offset, length)
        target.copy_(box)
