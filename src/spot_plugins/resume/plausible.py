"""Checks of the slices in manifests, which come from a bucket and may therefore hold anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise, product
from math import prod
from typing import Final

from ..format.boxes import Box, whole
from ..format.manifest import RankManifest, TensorSlice
from ..state.dtypes import DTYPES

_ITEM_BYTES: Final = {name: dtype.itemsize for dtype, name in DTYPES.items()}
_FIRST_DATA_BYTE: Final = 8  # a safetensors file begins with the length of its header
_MAX_DIMENSIONS: Final = 64  # of a tensor in torch
_MAX_NUMBER: Final = 2**63 - 1
_CORNERS_PER_BOX: Final = 4096  # boxes that are cut along more than twelve dimensions are not ours
_NEIGHBORS_PER_BOX: Final = 64  # ours are cut along one dimension, most of them, so each has few


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
    by_blob: defaultdict[tuple[int, int], list[TensorSlice]] = defaultdict(list)
    for manifest, piece in pieces:
        if not _is_possible(piece, manifest):
            return f"the position of {piece.name!r} is impossible"
        by_name[piece.name].append((manifest.rank, piece))
        by_blob[manifest.rank, piece.blob].append(piece)
    for found_in_blob in by_blob.values():
        in_order = sorted((each for each in found_in_blob if each.stop > each.start), key=lambda each: each.start)
        for before, after in pairwise(in_order):
            if after.start < before.stop:  # a small blob could name any number of large tensors
                return f"{before.name!r} and {after.name!r} share bytes of one blob"
    for name, found in by_name.items():
        if len({(piece.dtype, piece.shape) for _, piece in found}) > 1:
            return f"the slices of {name!r} are of different tensors"
        boxes_of_ranks = {(rank, Box(piece.offsets, piece.lengths)) for rank, piece in found}
        boxes = {box for _, box in boxes_of_ranks}
        _, first = found[0]
        is_fine = _is_disjoint(boxes) if first.shared and not complete else _is_all(boxes, first.shape)
        if len(boxes_of_ranks) < len(found) or not is_fine:
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
        and len(piece.shape) <= _MAX_DIMENSIONS
        and all(0 <= first <= first + n <= extent <= _MAX_NUMBER for extent, first, n in zip(*dimensions, strict=True))
        and prod(piece.lengths) * item_bytes == piece.stop - piece.start
    )


def _is_all(boxes: Collection[Box], shape: tuple[int, ...]) -> bool:
    """
    Return True if *boxes* cover each element of a tensor of this *shape* exactly once.

    A box is the sum of its corners, with a sign that changes from the lower to the upper side of each dimension. The
    corners of boxes that touch cancel, so that those of the whole tensor are left. This takes one pass over the boxes.
    """
    dims = [dim for dim, extent in enumerate(shape) if any(box.lengths[dim] != extent for box in boxes)]
    if 2 ** len(dims) > _CORNERS_PER_BOX:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in [*((box, 1) for box in boxes), (whole(shape), -1)]:
        if box.num_elements:
            sides = [((box.offsets[dim], 1), (box.offsets[dim] + box.lengths[dim], -1)) for dim in dims]
            for corner in product(*sides):
                corners[tuple(place for place, _ in corner)] += sign * prod(side for _, side in corner)
    return not any(corners.values())


def _is_disjoint(boxes: Iterable[Box]) -> bool:
    """Return True if no two boxes have an element in common. Too many boxes side by side count as overlapping."""
    full = [box for box in boxes if box.num_elements]
    if not full or not full[0].offsets:
        return len(full) <= 1
    dims = range(len(full[0].offsets))
    along = max(dims, key=lambda dim: len({box.offsets[dim] for box in full}))
    full.sort(key=lambda box: box.offsets[along])
    for number, box in enumerate(full):
        for other in full[number + 1 : number + 1 + _NEIGHBORS_PER_BOX]:
            if other.offsets[along] >= box.offsets[along] + box.lengths[along]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(*box, *other, strict=True)):
                return False
        else:
            if len(full) > number + 1 + _NEIGHBORS_PER_BOX:
                return False
    return True
