"""An order of samples in which the samples of one step have similar lengths."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import torch
import xxhash

STEPS_SORTED_AT_ONCE: Final = 50
"""At most so many steps are sorted together, as in transformers. Fewer keep the order more random."""


class GroupedByLength:
    """
    Order samples so that the samples of one step have similar lengths, whatever the number of ranks.

    The samples are permuted, and the permutation is sorted by length in pieces of several whole steps. The longest
    sample of all comes first, so that a GPU with too little memory fails at once.

    Args:
        lengths: The length of each sample.
        samples_per_step: Samples of one step over all ranks and batches.
    """

    def __init__(self, lengths: Sequence[int], samples_per_step: int) -> None:
        self._lengths = torch.tensor(lengths, dtype=torch.int64)
        # At least four pieces, as far as the samples allow.
        steps = max(1, min(len(lengths) // (samples_per_step * 4), STEPS_SORTED_AT_ONCE))
        self._size = samples_per_step * steps
        checksum = xxhash.xxh3_64(array("q", self._lengths.tolist())).hexdigest()
        self.name = f"length-{checksum}-{samples_per_step}"
        """Equal for equal orders: the checksum of the lengths, and the samples of a step."""

    def __call__(self, permutation: torch.Tensor) -> torch.Tensor:
        """Return the samples of *permutation* in the order of this object."""
        if not len(permutation):
            return permutation
        starts = range(0, len(permutation), self._size)
        pieces = [permutation[start : start + self._size] for start in starts]
        pieces = [piece[self._lengths[piece].argsort(descending=True, stable=True)] for piece in pieces]
        order = torch.cat(pieces)
        first = int(self._lengths[order].argmax())
        order[[0, first]] = order[[first, 0]]
        return order
