"""A sum of all weights, by which a drill compares two trainings after every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch.optim import Optimizer

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A type of integers for each size of an element in bytes."""


def sum_of_weights(optimizers: Iterable[Optimizer]) -> int | None:
    """
    Return the sum of the bits of all parameters of *optimizers*, or None if there are none.

    Integers are added, so that the order does not matter. Of a sharded parameter the part of this rank is added.
    """
    sums = [
        _bits(parameter).sum(dtype=torch.int64)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    return sum(int(each) for each in sums) if sums else None


def _bits(parameter: Any) -> torch.Tensor:
    """Return the part of *parameter* that this rank has, as integers."""
    local = parameter.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    local = torch.view_as_real(local) if local.is_complex() else local
    return local.contiguous().view(_INTEGERS[local.element_size()])
