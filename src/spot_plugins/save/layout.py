"""
Layout of the blobs of one rank: the slices of tensors that it stores. Pure arithmetic, the same on all ranks.

Tensors that several ranks hold alike are laid end to end and cut, at rows, into one piece of equal bytes for each rank.
Every rank computes the same cut, so nothing is exchanged. A rank stores the tensors that it alone holds whole.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..format.boxes import Box
from ..format.manifest import TensorSlice
from ..state.dtypes import DTYPES
from ..state.live_tensor import LiveTensor

MAX_BLOB_BYTES: Final = 64 * 1024**2  # one whole-object put, no multipart upload to leave behind
LARGE_BLOB_BYTES: Final = 1024**3  # S3 takes 5 GiB in one put, and a put that fails is repeated from its start
NUM_LARGE_BLOBS: Final = 8  # as many as are put at a time, so that those in memory are never more than the state
MAX_SLICE_BYTES: Final = 8 * 1024**2  # a rank that needs a single row reads and verifies this much
EVERYWHERE_BYTES: Final = 64  # a counter of steps, say: not worth a look into another rank's manifest
BLOB_ALIGNMENT: Final = 4096  # O_DIRECT and page-wise mapping of single blobs want it
DATA_ALIGNMENT: Final = 64  # a view as any dtype needs 8; a cache line is as cheap
_HEADER_BYTES: Final = 8 + 2 + DATA_ALIGNMENT  # of a header without entries, at most: length, braces, padding


class Origin(NamedTuple):
    """The elements of a live tensor that are in a slice."""

    box: int
    """Index into the boxes of the live tensor."""
    start: int
    """First row within the box; rows are indices of dimension 0. A scalar is one row."""
    rows: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of all slices of one rank. Cached as long as the state keeps its shape."""

    num_bytes: int
    """Size of the shared buffer."""
    blobs: tuple[tuple[int, int], ...]
    """Offset and size of each blob's image in the buffer."""
    headers: tuple[bytes, ...]
    """The safetensors header of each blob; its image begins with it."""
    slices: tuple[TensorSlice, ...]
    """The stored slices. Byte ranges count from the start of the blob."""
    origins: tuple[Origin, ...]
    """The elements of each slice."""


class _Piece(NamedTuple):
    """Some rows of a box."""

    name: str
    live: LiveTensor
    origin: Origin

    @property
    def box(self) -> Box:
        """The place of these rows in the whole tensor."""
        (offsets, lengths), (_, start, rows) = self.live.held[self.origin.box], self.origin
        return Box((offsets[0] + start, *offsets[1:]), (rows, *lengths[1:])) if lengths else Box((), ())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        boxes = self.live.boxes
        return tuple(self.live.tensor.shape) if boxes is None else boxes.shape

    @property
    def num_bytes(self) -> int:
        """Bytes of these rows."""
        return self.box.num_elements * self.live.tensor.element_size()

    def rows(self, start: int, rows: int) -> _Piece:
        """Return some of these rows."""
        return self._replace(origin=self.origin._replace(start=self.origin.start + start, rows=rows))


def signature(tensors: Mapping[str, LiveTensor]) -> Hashable:
    """Return a value that is equal for others exactly if :func:`plan_layout` returns the same layout for them."""
    return tuple((name, live.tensor.dtype, live.tensor.shape, live.boxes) for name, live in tensors.items())


def plan_layout(
    tensors: Mapping[str, LiveTensor], rank: int, *, grows: bool = False, own_apart: bool = False
) -> Layout:
    """
    Decide which slices *rank* stores, and their positions.

    Args:
        tensors: All that this rank holds, by name. All holders of a piece must have it under the same name.
        rank: This rank.
        grows: Whether blobs grow with the state, because a service takes money and time for each.
        own_apart: Whether tensors of the rank's own are in blobs of their own, after the others. The blobs before them
            are then those of a layout without these tensors, which every holder of the shared ones can plan.

    Returns:
        The layout. Over all ranks, the slices of a shared tensor cover it exactly once; but a tiny one is stored by
        all who hold it.
    """
    shared, own = [*_share(tensors, rank)], [*_own(tensors)]
    groups = [each for pieces in ([shared, own] if own_apart else [shared + own]) for each in _groups(pieces, grows)]
    blobs: list[tuple[int, int]] = []
    headers: list[bytes] = []
    slices: list[TensorSlice] = []
    origins: list[Origin] = []
    end = 0
    for group in groups:
        header = _header(group)
        offset = -(-end // BLOB_ALIGNMENT) * BLOB_ALIGNMENT
        position = len(header)
        for piece in group:
            slices.append(_slice(piece, blob=len(blobs), start=position))
            origins.append(piece.origin)
            position += piece.num_bytes
        blobs.append((offset, position))
        headers.append(header)
        end = offset + position
    return Layout(max(end, 1), tuple(blobs), tuple(headers), tuple(slices), tuple(origins))


def _share(tensors: Mapping[str, LiveTensor], rank: int) -> Iterator[_Piece]:
    """Yield this rank's rows of what it shares. A row belongs to the holder where its first byte falls."""
    held_alike: defaultdict[tuple[int, ...], list[_Piece]] = defaultdict(list)
    for name, live in sorted(tensors.items()):
        if live.boxes is not None:
            held_alike[live.boxes.holders] += _boxes(name, live)
    for holders, pieces in held_alike.items():
        yield from (piece for piece in pieces if piece.num_bytes <= EVERYWHERE_BYTES)
        pieces = [piece for piece in pieces if piece.num_bytes > EVERYWHERE_BYTES]
        index = holders.index(rank)
        total = sum(piece.num_bytes for piece in pieces)
        first_byte, last_byte = index * total // len(holders), (index + 1) * total // len(holders)
        position = 0
        for piece in pieces:
            rows, size = piece.origin.rows, piece.num_bytes
            row_bytes = size // rows
            start = min(max(-(-(first_byte - position) // row_bytes), 0), rows)
            stop = min(max(-(-(last_byte - position) // row_bytes), 0), rows)
            if start < stop:
                yield piece.rows(start, stop - start)
            position += size


def _own(tensors: Mapping[str, LiveTensor]) -> Iterator[_Piece]:
    for name, live in tensors.items():
        if live.boxes is None:
            yield from _boxes(name, live)


def _boxes(name: str, live: LiveTensor) -> Iterator[_Piece]:
    for number, (_, lengths) in enumerate(live.held):
        yield _Piece(name, live, Origin(number, 0, lengths[0] if lengths else 1))


def _split(piece: _Piece) -> Iterator[_Piece]:
    """Cut a piece into runs of rows that fit into a slice; a longer row stays whole."""
    size, rows = piece.num_bytes, piece.origin.rows
    room = min(MAX_SLICE_BYTES, MAX_BLOB_BYTES - _HEADER_BYTES - _entry_bytes(piece))
    if size <= room or size == 0:
        yield piece
        return
    step = max(room // (size // rows), 1)
    for start in range(0, rows, step):
        yield piece.rows(start, min(step, rows - start))


def _max_blob_bytes(num_bytes: int) -> int:
    """Return the size of the blobs of a rank that stores *num_bytes*: small states have blobs of the smallest size."""
    if num_bytes <= NUM_LARGE_BLOBS * MAX_BLOB_BYTES:
        return MAX_BLOB_BYTES
    # A blob may miss a slice to be full.
    return min(num_bytes // NUM_LARGE_BLOBS + 2 * MAX_SLICE_BYTES, LARGE_BLOB_BYTES)


def _groups(pieces: list[_Piece], grows: bool) -> Iterator[list[_Piece]]:
    """Return the slices of each blob."""
    pieces = [cut for piece in pieces for cut in _split(piece)]
    # safetensors allows no gaps: the widest types first, so that each tensor is aligned to its own type
    pieces.sort(key=lambda piece: -piece.live.tensor.element_size())
    max_bytes = _max_blob_bytes(sum(piece.num_bytes for piece in pieces)) if grows else MAX_BLOB_BYTES
    return _fill_blobs(pieces, max_bytes)


def _fill_blobs(pieces: list[_Piece], max_bytes: int) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    size = _HEADER_BYTES
    for piece in pieces:
        added = _entry_bytes(piece) + piece.num_bytes
        if group and size + added > max_bytes:
            yield group
            group, size = [], _HEADER_BYTES
        group.append(piece)
        size += added
    if group:
        yield group


def _header(group: list[_Piece]) -> bytes:
    """Return length and JSON of a safetensors header, padded with spaces so that the data is aligned."""
    entries: dict[str, object] = {}
    position = 0
    for piece in group:
        entries |= _entry(piece, position)
        position += piece.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // DATA_ALIGNMENT) * DATA_ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def _entry(piece: _Piece, position: int) -> dict[str, object]:
    offsets = [position, position + piece.num_bytes]
    dtype = DTYPES[piece.live.tensor.dtype]
    return {_name_in_blob(piece): {"dtype": dtype, "shape": piece.box.lengths, "data_offsets": offsets}}


def _name_in_blob(piece: _Piece) -> str:
    """Return the name. If the piece is not all of the tensor, its box follows as a Python index."""
    (offsets, lengths), shape = piece.box, piece.shape
    if lengths == shape:
        return piece.name
    cut = ",".join(f"{first}:{first + n}" for first, n in zip(offsets, lengths, strict=True))
    return f"{piece.name}[{cut}]"


def _entry_bytes(piece: _Piece) -> int:
    """Return how long the header's entry of *piece*, or of some of its rows, is at most."""
    longest = ",".join(f"{extent}:{extent}" for extent in piece.shape)
    widest = {f"{piece.name}[{longest}]": [*_entry(piece, MAX_BLOB_BYTES).values()]}
    return len(json.dumps(widest))  # with spaces: more than enough


def _slice(piece: _Piece, *, blob: int, start: int) -> TensorSlice:
    offsets, lengths = piece.box
    return TensorSlice(
        name=piece.name,
        dtype=DTYPES[piece.live.tensor.dtype],
        shape=piece.shape,
        offsets=offsets,
        lengths=lengths,
        shared=piece.live.boxes is not None,
        blob=blob,
        start=start,
        stop=start + piece.num_bytes,
    )
