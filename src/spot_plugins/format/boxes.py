"""Boxes: the pieces of tensors that ranks hold. A *box* is a range of indices in every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple


class Box(NamedTuple):
    """A piece of a tensor, with one offset and one length per dimension. Both are empty for a scalar."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The number of elements in the box."""
        return prod(self.lengths)


@dataclass(frozen=True, slots=True)
class ShardBoxes:
    """The boxes of a shared tensor that a rank holds, and the ranks that hold the same boxes."""

    shape: tuple[int, ...]
    """The shape of the whole tensor."""
    held: tuple[Box, ...]
    """The boxes, in the order of the rank's memory. One box is empty if the rank holds no element."""
    holders: tuple[int, ...]
    """The ranks that hold exactly these boxes, in ascending order. They share the work of storing them."""


def common(one: Box, other: Box) -> Box:
    """Return the box that two boxes of one tensor have in common. If it is empty, some lengths are 0."""
    offsets = tuple(map(max, one.offsets, other.offsets))
    stops = (min(first + n, other_first + m) for first, n, other_first, m in zip(*one, *other, strict=True))
    return Box(offsets, tuple(max(0, stop - first) for first, stop in zip(offsets, stops, strict=True)))


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box that covers a whole tensor of this *shape*."""
    return Box((0,) * len(shape), shape)


def range_boxes(shape: tuple[int, ...], start: int, stop: int) -> tuple[Box, ...]:
    """
    Return the boxes of the elements *start* to *stop* of a tensor, counted row by row.

    The boxes, flattened and concatenated in this order, are exactly the range. There are at most ``2 * ndim - 1``. An
    empty range gives one empty box. An empty range of a scalar gives no box, because a scalar has no dimension that
    could be empty.
    """
    if start >= stop:
        return (Box((0,) * len(shape), (0, *shape[1:])),) if shape else ()
    if not shape:
        return (Box((), ()),)
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the rows that lie completely inside
    if first > last:
        return _in_row(shape, last, start, stop)
    boxes: tuple[Box, ...] = ()
    if start < first * row:
        boxes += _in_row(shape, first - 1, start, first * row)
    if first < last:
        boxes += (Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:])),)
    if last * row < stop:
        boxes += _in_row(shape, last, last * row, stop)
    return boxes


def _in_row(shape: tuple[int, ...], index: int, start: int, stop: int) -> tuple[Box, ...]:
    """Return the boxes of the elements *start* to *stop*, which all lie in row *index*."""
    before = index * prod(shape[1:])
    inner = range_boxes(shape[1:], start - before, stop - before)
    return tuple(Box((index, *box.offsets), (1, *box.lengths)) for box in inner)
