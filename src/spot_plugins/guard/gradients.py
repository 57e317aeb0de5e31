"""Gradients that wait for an optimizer step while a bare loop saves."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch.optim import Optimizer

from ..state.shard import local_tensor
from .internals import version_of


class WaitingGradients:
    """
    Finds gradients that were made after the last step of any optimizer.

    It looks at the first gradient of each optimizer, and takes about a microsecond per optimizer and step.
    """

    def __init__(self) -> None:
        self._used: dict[Optimizer, tuple[weakref.ref[torch.Tensor], int]] = {}

    def end_step(self, optimizers: Iterable[Optimizer]) -> None:
        """Take note that one of *optimizers* has stepped. The gradients that lie there now wait for nothing."""
        for optimizer in optimizers:
            gradient = _first_gradient(optimizer)
            if gradient is None:
                self._used.pop(optimizer, None)
            else:
                self._used[optimizer] = weakref.ref(gradient), version_of(gradient)

    def exist(self, optimizers: Iterable[Optimizer]) -> bool:
        """Return True if one of *optimizers* has a gradient that is new, and neither cleared nor an overflow."""
        return any(self._has_new(optimizer) for optimizer in optimizers)

    def _has_new(self, optimizer: Optimizer) -> bool:
        gradient = _first_gradient(optimizer)
        if gradient is None:
            return False
        used = self._used.get(optimizer)
        if used is not None and used[0]() is gradient and used[1] == version_of(gradient):
            return False
        values = local_tensor(gradient)
        if values.is_sparse:
            return True
        return bool(values.any()) and bool(torch.isfinite(values).all())


def _first_gradient(optimizer: Optimizer) -> torch.Tensor | None:
    parameters = (each for group in optimizer.param_groups for each in group["params"])
    return next((each.grad for each in parameters if each.grad is not None), None)
