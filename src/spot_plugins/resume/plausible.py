"""Checks of the slices in manifests, which come from a bucket and may therefore hold anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import Final

from ..format.boxes import Box
from ..format.manifest import RankManifest, TensorSlice
from ..state.dtypes import DTYPES

_ITEM_BYTES: Final = {name: dtype.itemsize for dtype, name in DTYPES.items()}
_FIRST_DATA_BYTE: Final = 8  # a safetensors file begins with the length of its header


def find_nonsense(pieces: Iterable[tuple[RankManifest, TensorSlice]], *, complete: bool = True) -> str | None:
    """
    Look for slices that contradict each other or their manifest.

    A slice may occur twice, because replicas that do not know of each other store it each.

    Args:
        pieces: The slices of one rank's own tensors and of shared tensors, each with its manifest.
        complete: Whether these are the manifests of all ranks, so that shared tensors have to be whole.

    Returns:
        A description of the first slice that lies outside its blob or its tensor, or of the first tensor whose slices
        are missing, overlap, or differ in type or shape. None if every tensor is whole.
    """
    by_name: defaultdict[str, list[tuple[int, TensorSlice]]] = defaultdict(list)
    for manifest, piece in pieces:
        if not _is_possible(piece, manifest):
            return f"the position of {piece.name!r} is impossible"
        by_name[piece.name].append((manifest.rank, piece))
    for name, found in by_name.items():
        if len({(piece.dtype, piece.shape) for _, piece in found}) > 1:
            return f"the slices of {name!r} are of different tensors"
        boxes_of_ranks = {(rank, Box(piece.offsets, piece.lengths)) for rank, piece in found}
        boxes = {box for _, box in boxes_of_ranks}
        _, first = found[0]
        is_whole = sum(box.num_elements for box in boxes) == prod(first.shape)
        if len(boxes_of_ranks) < len(found) or _overlap(boxes) or not (is_whole or (first.shared and not complete)):
            return f"not all of {name!r} is there"
    return None


def _is_possible(piece: TensorSlice, manifest: RankManifest) -> bool:
    item_bytes = _ITEM_BYTES.get(piece.dtype)
    dimensions = (piece.shape, piece.offsets, piece.lengths)
    return (
        item_bytes is not None
        and 0 <= piece.blob < len(manifest.blobs)
        and _FIRST_DATA_BYTE <= piece.start <= piece.stop <= manifest.blobs[piece.blob].num_bytes
        and piece.start % item_bytes == 0
        and len({len(each) for each in dimensions}) == 1
        and all(0 <= first <= first + n <= extent for extent, first, n in zip(*dimensions, strict=True))
        and prod(piece.lengths) * item_bytes == piece.stop - piece.start
    )


def _overlap(boxes: Iterable[Box]) -> bool:
    """Return True if two boxes have an element in common. It is fast if the boxes are cut along one dimension."""
    full = [box for box in boxes if box.num_elements]
    if not full or not full[0].offsets:
        return len(full) > 1
    dims = range(len(full[0].offsets))
    along = max(dims, key=lambda dim: len({box.offsets[dim] for box in full}))
    full.sort(key=lambda box: box.offsets[along])
    for number, box in enumerate(full):
        for other in full[number + 1 :]:
            if other.offsets[along] >= box.offsets[along] + box.lengths[along]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(*box, *other, strict=True)):
                return True
    return False
