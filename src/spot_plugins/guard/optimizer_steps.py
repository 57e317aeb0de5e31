"""The steps of every optimizer of this process, counted by torch's own hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class OptimizerSteps:
    """
    Counts the steps of every optimizer of this process, whether a host knows the optimizer or not.

    A step that a gradient scaler leaves out does not count. Accelerate's wrapper of an optimizer does not count, but
    the optimizer in it does. An optimizer that calls the step of another one counts, and so does the other one.

    It costs less than a microsecond per step. Keep it open only while a training runs.
    """

    def __init__(self, on_step: Callable[[Optimizer], None] | None = None) -> None:
        """
        Begin to count.

        Args:
            on_step: Called after each step with its optimizer, on the thread that made the step.
        """
        self.total = 0
        """Steps of all optimizers together."""
        self._on_step = on_step
        self._of: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        untraced = torch.compiler.disable(self._count)  # type: ignore[no-untyped-call]
        self._handle = register_optimizer_step_post_hook(untraced)

    def of(self, optimizer: Optimizer) -> int:
        """Return the number of steps of *optimizer*."""
        return self._of.get(optimizer, 0)

    def seen(self) -> list[Optimizer]:
        """Return the optimizers that have stepped and still exist, in the order of their first steps."""
        return list(self._of)

    def close(self) -> None:
        """Count no more."""
        self._handle.remove()

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.total += 1
        self._of[optimizer] = self._of.get(optimizer, 0) + 1
        if self._on_step is not None:
            self._on_step(optimizer)
