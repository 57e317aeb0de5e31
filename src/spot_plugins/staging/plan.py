"""
Who stores which slice of which tensor, and where it lies in the blobs. Pure arithmetic, the same on all ranks.

Tensors that all ranks hold alike are laid end to end and cut, at rows, into one part of equal bytes per
rank; every rank computes the same cut, so nothing is exchanged. Tensors of one rank alone are stored whole.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

import torch

from ..manifest import TensorSlice

MAX_BLOB_BYTES: Final = 64 * 1024**2  # one whole-object put, no multipart upload to leave behind
BLOB_ALIGNMENT: Final = 4096  # O_DIRECT and page-wise mapping of single blobs want it
DATA_ALIGNMENT: Final = 64  # a view as any dtype needs 8; a cache line is as cheap
_HEADER_BYTES: Final = 8 + 2 + DATA_ALIGNMENT  # of a header without entries, at most: length, braces, padding

DTYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}
"""What safetensors can hold, and how it spells it."""


class Source(NamedTuple):
    """One tensor to be saved."""

    tensor: torch.Tensor
    replicated: bool
    """Whether all ranks hold the same values and share the work."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one rank lies. Cached as long as the state keeps its shape."""

    num_bytes: int
    """Size of the shared buffer."""
    blobs: tuple[tuple[int, int], ...]
    """Offset and size of each blob's image in the buffer."""
    headers: tuple[bytes, ...]
    """The safetensors header of each blob; its image begins with it."""
    slices: tuple[TensorSlice, ...]
    """What is stored; byte ranges count from the start of the blob."""


class _Piece(NamedTuple):
    name: str
    tensor: torch.Tensor
    replicated: bool
    start: int
    """First row; rows are indices of dimension 0. A scalar is one row."""
    rows: int


def signature(sources: Mapping[str, Source]) -> Hashable:
    """Return a value that is equal exactly if :func:`plan_layout` would give the same layout."""
    return tuple((name, s.tensor.dtype, s.tensor.shape, s.replicated) for name, s in sources.items())


def plan_layout(sources: Mapping[str, Source], rank: int, world_size: int) -> Layout:
    """
    Decide what *rank* stores and where.

    Args:
        sources: All tensors by name. Replicated ones must have equal names, types and shapes on all ranks.
        rank: This rank.
        world_size: Number of ranks that share the replicated tensors.

    Returns:
        The layout. Over all ranks, the slices of a replicated tensor cover it exactly once.
    """
    pieces = [*_share(sources, rank, world_size), *_own(sources)]
    # safetensors allows no gaps: the widest types first, so that each tensor is aligned to its own type
    pieces = [part for piece in pieces for part in _split(piece)]
    pieces.sort(key=lambda piece: -piece.tensor.element_size())
    blobs: list[tuple[int, int]] = []
    headers: list[bytes] = []
    slices: list[TensorSlice] = []
    end = 0
    for group in _fill_blobs(pieces):
        header = _header(group)
        offset = -(-end // BLOB_ALIGNMENT) * BLOB_ALIGNMENT
        position = len(header)
        for piece in group:
            slices.append(_slice(piece, blob=len(blobs), start=position))
            position += _num_bytes(piece)
        blobs.append((offset, position))
        headers.append(header)
        end = offset + position
    return Layout(max(end, 1), tuple(blobs), tuple(headers), tuple(slices))


def _share(sources: Mapping[str, Source], rank: int, world_size: int) -> Iterator[_Piece]:
    """Yield this rank's rows of the replicated tensors. A row belongs to the rank where its first byte falls."""
    replicated = sorted((name, source.tensor) for name, source in sources.items() if source.replicated)
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in replicated)
    first_byte, last_byte = rank * total // world_size, (rank + 1) * total // world_size
    position = 0
    for name, tensor in replicated:
        rows = tensor.shape[0] if tensor.ndim else 1
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            if rank == 0:
                yield _Piece(name, tensor, True, 0, rows)
            continue
        row_bytes = size // rows
        start = min(max(-(-(first_byte - position) // row_bytes), 0), rows)
        stop = min(max(-(-(last_byte - position) // row_bytes), 0), rows)
        if start < stop:
            yield _Piece(name, tensor, True, start, stop - start)
        position += size


def _own(sources: Mapping[str, Source]) -> Iterator[_Piece]:
    for name, source in sources.items():
        if not source.replicated:
            rows = source.tensor.shape[0] if source.tensor.ndim else 1
            yield _Piece(name, source.tensor, False, 0, rows)


def _split(piece: _Piece) -> Iterator[_Piece]:
    """Cut a piece into runs of rows that fit into a blob; a longer row stays whole."""
    size = _num_bytes(piece)
    room = MAX_BLOB_BYTES - _HEADER_BYTES - _entry_bytes(piece)
    if size <= room or size == 0:
        yield piece
        return
    step = max(room // (size // piece.rows), 1)
    for start in range(0, piece.rows, step):
        yield piece._replace(start=piece.start + start, rows=min(step, piece.rows - start))


def _fill_blobs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    size = _HEADER_BYTES
    for piece in pieces:
        added = _entry_bytes(piece) + _num_bytes(piece)
        if group and size + added > MAX_BLOB_BYTES:
            yield group
            group, size = [], _HEADER_BYTES
        group.append(piece)
        size += added
    if group:
        yield group


def _num_bytes(piece: _Piece) -> int:
    return prod(_lengths(piece)) * piece.tensor.element_size()


def _lengths(piece: _Piece) -> tuple[int, ...]:
    return (piece.rows, *piece.tensor.shape[1:]) if piece.tensor.ndim else ()


def _header(group: list[_Piece]) -> bytes:
    """Return length and JSON of a safetensors header, padded with spaces so that the data is aligned."""
    entries: dict[str, object] = {}
    position = 0
    for piece in group:
        entries |= _entry(piece, position)
        position += _num_bytes(piece)
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // DATA_ALIGNMENT) * DATA_ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def _entry(piece: _Piece, position: int) -> dict[str, object]:
    whole = piece.rows == (piece.tensor.shape[0] if piece.tensor.ndim else 1)
    name = piece.name if whole else f"{piece.name}[{piece.start}:{piece.start + piece.rows}]"
    offsets = [position, position + _num_bytes(piece)]
    return {name: {"dtype": DTYPES[piece.tensor.dtype], "shape": _lengths(piece), "data_offsets": offsets}}


def _entry_bytes(piece: _Piece) -> int:
    """Return how long the header's entry of *piece*, or of some of its rows, is at most."""
    rows = piece.start + piece.rows
    widest = {f"{piece.name}[{rows}:{rows}]": [*_entry(piece, MAX_BLOB_BYTES).values()]}
    return len(json.dumps(widest))  # with spaces: more than enough


def _slice(piece: _Piece, *, blob: int, start: int) -> TensorSlice:
    lengths = _lengths(piece)
    return TensorSlice(
        name=piece.name,
        dtype=DTYPES[piece.tensor.dtype],
        shape=tuple(piece.tensor.shape),
        offsets=(piece.start, *(0 for _ in lengths[1:])) if lengths else (),
        lengths=lengths,
        replicated=piece.replicated,
        blob=blob,
        start=start,
        stop=start + _num_bytes(piece),
    )
