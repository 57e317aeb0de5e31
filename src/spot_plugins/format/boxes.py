"""Which part of a tensor a rank holds. Pure geometry: a *box* is a range of indices in every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a tensor: from *offsets*, *lengths* long, one number per dimension; both empty for a scalar."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many elements are in it."""
        return prod(self.lengths)


@dataclass(frozen=True, slots=True)
class ShardBoxes:
    """Where the elements that a rank holds lie in the whole tensor, and who else holds just the same."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    boxes: tuple[Box, ...]
    """What is held, in the order of the rank's memory: an empty box where a small tensor has no part for this rank."""
    holders: tuple[int, ...]
    """The ranks that hold exactly these boxes, in ascending order: they share the work of storing them."""


def overlap(one: Box, other: Box) -> int:
    """Return how many elements two boxes of one tensor have in common."""
    sides = zip(*one, *other, strict=True)
    return prod(max(0, min(first + n, other_first + m) - max(first, other_first)) for first, n, other_first, m in sides)


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box of all of a tensor."""
    return Box((0,) * len(shape), shape)


def range_boxes(shape: tuple[int, ...], start: int, stop: int) -> tuple[Box, ...]:
    """
    Return the boxes of the elements *start* to *stop* of a tensor, counted row by row.

    Flattened and laid end to end they are that range, in this order. There are at most ``2 * ndim - 1`` of them; an
    empty range is one empty box, except that a scalar has no part that is empty.
    """
    if start >= stop:
        return (Box((0,) * len(shape), (0, *shape[1:])),) if shape else ()
    if not shape:
        return (Box((), ()),)
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the rows that are wholly inside
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
    """Return the boxes of a range that lies in row *index*."""
    before = index * prod(shape[1:])
    inner = range_boxes(shape[1:], start - before, stop - before)
    return tuple(Box((index, *box.offsets), (1, *box.lengths)) for box in inner)
