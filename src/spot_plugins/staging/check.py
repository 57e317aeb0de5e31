"""Whether slices that were read can be what they claim. They come from a bucket, so nothing of it is believed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import Final

from ..manifest import RankManifest, TensorSlice
from .plan import DTYPES

_ITEM_BYTES: Final = {name: dtype.itemsize for dtype, name in DTYPES.items()}
_FIRST_DATA_BYTE: Final = 8  # a safetensors file begins with the length of its header


def find_nonsense(pieces: Iterable[tuple[RankManifest, TensorSlice]]) -> str | None:
    """
    Look for what cannot be true of slices and the manifests that name them.

    Returns:
        Words for the first piece that lies outside its blob or its tensor, or for the first tensor of which parts
        are missing, overlap, or disagree about its type and shape. None if every tensor is whole.
    """
    by_name: defaultdict[str, list[TensorSlice]] = defaultdict(list)
    for manifest, piece in pieces:
        if not _is_possible(piece, manifest):
            return f"the place of {piece.name!r} is impossible"
        by_name[piece.name].append(piece)
    for name, parts in by_name.items():
        if len({(part.dtype, part.shape) for part in parts}) > 1:
            return f"the parts of {name!r} are of different tensors"
        if sum(prod(part.lengths) for part in parts) != prod(parts[0].shape) or _overlap(parts):
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


def _overlap(parts: list[TensorSlice]) -> bool:
    """Whether any two boxes have an element in common. Linear for runs of rows, which is what is written today."""
    boxes = sorted((part for part in parts if prod(part.lengths)), key=lambda part: part.offsets)
    for number, box in enumerate(boxes):
        for other in boxes[number + 1 :]:
            if box.offsets and other.offsets[0] >= box.offsets[0] + box.lengths[0]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(*_sides(box), *_sides(other), strict=True)):
                return True
    return False


def _sides(box: TensorSlice) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return box.offsets, box.lengths
