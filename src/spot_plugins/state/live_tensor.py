"""A live tensor of the training, and the moments at which its values may change."""

from __future__ import annotations

from enum import Enum, auto
from math import prod
from typing import NamedTuple

import torch

from ..format.boxes import Box, ShardBoxes, whole


class Changes(Enum):
    """When a tensor may change, as far as the one who saves it knows."""

    ANYTIME = auto()
    IN_STEP = auto()
    """In the step of an optimizer alone: until the next one begins, there is time to copy it."""
    NEVER = auto()
    """Presumably never: it is frozen. Whether that holds is watched."""


class LiveTensor(NamedTuple):
    """One tensor to be saved, or this rank's part of one."""

    tensor: torch.Tensor
    """The whole; or the elements of its placement: of the shape of the only box, or those of all, end to end."""
    placement: ShardBoxes | None = None
    """Which part of a tensor that the ranks share. None: it is this rank's own, and others have theirs."""
    changes: Changes = Changes.ANYTIME

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where the elements lie in the tensor."""
        return (whole(tuple(self.tensor.shape)),) if self.placement is None else self.placement.boxes

    def in_box(self, number: int) -> torch.Tensor:
        """Return the elements in one of the boxes, in its shape."""
        lengths = self.boxes[number].lengths
        if self.tensor.shape == lengths:
            return self.tensor
        start = sum(box.num_elements for box in self.boxes[:number])
        return self.tensor.reshape(-1)[start : start + prod(lengths)].view(lengths)
