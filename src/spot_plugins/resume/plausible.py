"""Checks of the slices in manifests, which come from a bucket and may therefore hold anything. No torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise, product
from math import prod
from typing import Final

from ..format.boxes import Box, whole
from ..format.manifest import Blob, RankManifest, TensorSlice

ITEM_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""Bytes of one element, by the name of the dtype in a safetensors file."""

UNCHECKED_BYTES: Final = 64 * 1024**2
"""Objects up to this size are allocated before anything of them is read."""

_FIRST_DATA_BYTE: Final = 8  # a safetensors file begins with the length of its header
_MAX_DIMENSIONS: Final = 64  # of a tensor in torch
_MAX_NUMBER: Final = 2**63 - 1
_CORNERS: Final = 2**22  # of all boxes, a few seconds of work
_CORNERS_PER_BOX: Final = 64  # ours have no more, unless they are cut along more than six dimensions
_NEIGHBORS_PER_BOX: Final = 64  # ours are cut along one dimension, most of them, so each has few


def find_nonsense(pieces: Iterable[tuple[RankManifest, TensorSlice]], *, complete: bool = True) -> str | None:
    """
    Look for slices that contradict each other or their manifest. The work grows as the number of slices.

    A slice may occur twice, because replicas that do not know of each other store it each. Ranks may also refer to the
    same frozen blob.

    Args:
        pieces: All slices of one manifest or of several, each with its manifest.
        complete: Whether these are the manifests of all ranks, so that shared tensors have to be whole.

    Returns:
        A description of the first slice that lies outside its blob or its tensor, of the first blob or tensor about
        which ranks differ, or of the first tensor whose slices are missing or overlap. None if every tensor is whole.
    """
    by_name: defaultdict[tuple[str, int | None], list[tuple[int, TensorSlice]]] = defaultdict(list)
    by_key: defaultdict[str, set[tuple[int, int, str, Box]]] = defaultdict(set)
    blobs: dict[str, Blob] = {}
    is_shared: dict[str, bool] = {}
    for manifest, piece in pieces:
        if not _is_possible(piece, manifest):
            return f"the position of {piece.name!r} is impossible"
        blob = manifest.blobs[piece.blob]
        if blobs.setdefault(blob.key, blob) != blob:
            return f"{blob.key!r} has two sizes or hashes"
        if is_shared.setdefault(piece.name, piece.shared) != piece.shared:
            return f"{piece.name!r} is both shared and a rank's own"
        by_name[piece.name, None if piece.shared else manifest.rank].append((manifest.rank, piece))
        if piece.stop > piece.start:
            by_key[blob.key].add((piece.start, piece.stop, piece.name, Box(piece.offsets, piece.lengths)))
    for found_in_blob in by_key.values():
        for before, after in pairwise(sorted(found_in_blob)):
            if after[0] < before[1]:  # a small blob could name any number of large tensors
                return f"{before[2]!r} and {after[2]!r} share bytes of one blob"
    corners_left = _CORNERS + _CORNERS_PER_BOX * sum(map(len, by_name.values()))
    for (name, _), found in by_name.items():
        _, first = found[0]
        if any((piece.dtype, piece.shape) != (first.dtype, first.shape) for _, piece in found):
            return f"the slices of {name!r} are of different tensors"
        boxes_of_ranks = {(rank, Box(piece.offsets, piece.lengths)) for rank, piece in found}
        boxes = {box for _, box in boxes_of_ranks}
        cut = [dim for dim, extent in enumerate(first.shape) if any(box.lengths[dim] != extent for box in boxes)]
        if first.shared and not complete:
            is_fine = _is_disjoint(boxes)
        else:
            corners_left -= len(boxes) << len(cut)
            is_fine = corners_left >= 0 and _is_all(boxes, first.shape, cut)
        if len(boxes_of_ranks) < len(found) or not is_fine:
            return f"not all of {name!r} is there"
    return None


def _is_possible(piece: TensorSlice, manifest: RankManifest) -> bool:
    item_bytes = ITEM_BYTES.get(piece.dtype)
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


def _is_all(boxes: Collection[Box], shape: tuple[int, ...], dims: list[int]) -> bool:
    """
    Return True if *boxes* cover each element of a tensor of this *shape* exactly once. They are cut along *dims* only.

    A box is the sum of its corners, with a sign that changes from the lower to the upper side of each dimension. The
    corners of boxes that touch cancel, so that those of the whole tensor are left. This takes one pass over the boxes.
    """
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
