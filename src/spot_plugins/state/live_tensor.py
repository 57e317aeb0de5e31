"""A live tensor of the training, and the moments at which its values may change."""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto
from math import prod
from typing import NamedTuple

import torch

from ..format.boxes import Box, ShardBoxes, whole
from .shard import memory_of


class Changes(Enum):
    """The moments at which the values of a tensor may change, as far as its part knows."""

    ANYTIME = auto()
    IN_STEP = auto()
    """Only in the step of an optimizer. Until the next step begins, there is time to copy the tensor."""
    NEVER = auto()
    """Presumably never, because the tensor is frozen. :mod:`~spot_plugins.save.frozen` checks that."""


class KnownMemory(NamedTuple):
    """Addresses of memory, as of :func:`~.shard.memory_of`, for which some part knows when it changes."""

    trained: Set[int]
    """Memory that only an optimizer's step changes."""
    frozen: Set[int]
    """Memory for which no gradient is computed. Trained memory takes precedence."""

    def changes_of(self, tensor: torch.Tensor) -> Changes:
        """Return when *tensor* may change, by its memory alone."""
        memory = memory_of(tensor)
        if memory in self.trained:
            return Changes.IN_STEP
        return Changes.NEVER if memory in self.frozen else Changes.ANYTIME


class LiveTensor(NamedTuple):
    """One tensor to be saved, or this rank's piece of a tensor that the ranks share."""

    tensor: torch.Tensor
    """The elements of :attr:`held`: in the shape of the only box, or those of all boxes end to end."""
    boxes: ShardBoxes | None = None
    """The boxes of a tensor that the ranks share. None for a tensor of this rank's own; other ranks have theirs."""
    changes: Changes = Changes.ANYTIME

    @property
    def held(self) -> tuple[Box, ...]:
        """The boxes that this rank holds. For a tensor of its own, that is one box with all of it."""
        return (whole(tuple(self.tensor.shape)),) if self.boxes is None else self.boxes.held

    def in_box(self, number: int) -> torch.Tensor:
        """Return the elements in box *number* of :attr:`held`, in the shape of the box."""
        lengths = self.held[number].lengths
        if self.tensor.shape == lengths:
            return self.tensor
        start = sum(box.num_elements for box in self.held[:number])
        return self.tensor.reshape(-1)[start : start + prod(lengths)].view(lengths)
