"""Checks of the slices in manifests, which come from a bucket and may therefore hold anything. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from itertools import pairwise
from math import prod
from operator import attrgetter
from random import Random
from typing import Any, Final

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
_RANDOM: Final = Random()  # not that of the training


def find_nonsense(pieces: Iterable[tuple[RankManifest, TensorSlice]], *, complete: bool = True) -> str | None:
    """
    Look for slices that contradict each other or their manifest. The work grows as the number of slices.

    A slice may occur twice, because replicas that do not know of each other store it each. Ranks may also refer to the
    same frozen blob.

    Args:
        pieces: All slices of one manifest or of several, each with its manifest.
        complete: Whether these are the manifests of all ranks, so that tensors have to be whole.

    Returns:
        A description of the first slice that lies outside its blob or its tensor, of the first blob or tensor about
        which ranks differ, or of the first tensor whose slices are missing or overlap. None if nothing is wrong.
    """
    by_name: defaultdict[str | tuple[str, int], list[tuple[RankManifest, TensorSlice]]] = defaultdict(list)
    by_key: defaultdict[str, list[TensorSlice]] = defaultdict(list)
    blobs: dict[str, Blob] = {}
    is_shared: dict[str, bool] = {}
    for each in pieces:
        manifest, piece = each
        if not _is_possible(piece, manifest):
            return f"the position of {piece.name!r} is impossible"
        blob = manifest.blobs[piece.blob]
        if blobs.setdefault(blob.key, blob) != blob:
            return f"{blob.key!r} has two sizes or hashes"
        if is_shared.setdefault(piece.name, piece.shared) != piece.shared:
            return f"{piece.name!r} is both shared and a rank's own"
        by_name[piece.name if piece.shared else (piece.name, manifest.rank)].append(each)
        if piece.stop > piece.start:
            by_key[blob.key].append(piece)
    for inside in by_key.values():
        inside.sort(key=attrgetter("start"))
        for before, after in pairwise(inside):
            if after.start < before.stop and _place(after) != _place(before):
                # A small blob could name any number of large tensors.
                return f"{before.name!r} and {after.name!r} share bytes of one blob"
    return next((problem for found in by_name.values() if (problem := _problem_of(found, complete)) is not None), None)


def _problem_of(found: list[tuple[RankManifest, TensorSlice]], complete: bool) -> str | None:
    """Return what is wrong with the slices of one tensor as a whole, or None. See :func:`find_nonsense`."""
    _, first = found[0]
    if len(found) == 1 and first.lengths == first.shape:  # as most tensors
        return None
    if any(piece.shape != first.shape or piece.dtype != first.dtype for _, piece in found):
        return f"the slices of {first.name!r} are of different tensors"
    boxes = {Box(piece.offsets, piece.lengths) for _, piece in found}
    if len(boxes) < len(found) > len({(each.rank, piece.offsets, piece.lengths) for each, piece in found}):
        return f"a rank has a slice of {first.name!r} twice"
    if complete and not covers(boxes, whole(first.shape)):
        return f"not all of {first.name!r} is there"
    return None


def _place(piece: TensorSlice) -> tuple[Any, ...]:
    return piece.start, piece.stop, piece.name, piece.offsets, piece.lengths


def _is_possible(piece: TensorSlice, manifest: RankManifest) -> bool:
    item_bytes = ITEM_BYTES.get(piece.dtype)
    if (
        item_bytes is None
        or not 0 <= piece.blob < len(manifest.blobs)
        or not _FIRST_DATA_BYTE <= piece.start <= piece.stop <= manifest.blobs[piece.blob].num_bytes
        or piece.start % item_bytes
        or not len(piece.offsets) == len(piece.lengths) == len(piece.shape) <= _MAX_DIMENSIONS
    ):
        return False
    for extent, first, n in zip(piece.shape, piece.offsets, piece.lengths, strict=True):
        if not 0 <= first <= first + n <= extent <= _MAX_NUMBER:
            return False
    return prod(piece.lengths) * item_bytes == piece.stop - piece.start


def covers(boxes: Collection[Box], target: Box) -> bool:
    """
    Return True if *boxes* cover each element of *target* exactly once, and nothing else.

    A box is the sum of its corners, with a sign that changes from the lower to the upper side of each dimension. The
    corners of boxes that touch cancel, so that those of *target* are left. Each side gets a random number here, and a
    box the product of the differences of its sides, in which all its corners are multiplied out. So one pass over the
    boxes is enough. Other boxes have the same sum with a probability of less than 2**-50.
    """
    numbers: list[dict[int, int]] = [defaultdict(partial(_RANDOM.getrandbits, 62)) for _ in target.offsets]

    def value(box: Box) -> int:
        return prod(number[first] - number[first + n] for number, first, n in zip(numbers, *box, strict=True))

    return sum(map(value, boxes)) == value(target)
