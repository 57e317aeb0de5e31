"""The optimizers that train in this process, and the gradients that wait in them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch.optim import Optimizer

from ..guard.internals import version_of
from .framework import Framework
from .saved import parameters_of
from .told import Told

SEVERAL: Final = (
    "{kind} has gathered gradients over several batches, while another optimizer stepped. A save in between would lose "
    "these gradients. Call spot.after_step(stepped=False) for the batches after which it does not step"
)


class Trainers:
    """The optimizers that train. A warning names one that gathers gradients while another steps."""

    def __init__(self, framework: Framework, told: Told) -> None:
        self._framework = framework
        self._told = told
        self._known: set[Optimizer] = set()
        self._stepped: set[Optimizer] = set()  # after the last step
        self._waiting: dict[Optimizer, tuple[weakref.ref[torch.Tensor], int]] = {}

    def expect(self, registered: Iterable[Any]) -> None:
        """Expect steps of all optimizers of the framework, and of those among the *registered* objects."""
        self._known.update(self._framework.optimizers)
        self._known.update(each for each in registered if isinstance(each, Optimizer))

    def step(self, optimizer: Optimizer) -> None:
        """Take note of a step of any *optimizer* of this process."""
        self._known.add(optimizer)
        self._stepped.add(optimizer)
        if self._waiting and (waiting := self._waiting.pop(optimizer, None)) is not None:
            gradient = _first_gradient(optimizer)
            # The same tensor with other values: nobody has cleared the gradients, and more were added to them.
            if gradient is not None and gradient is waiting[0]() and version_of(gradient) > waiting[1]:
                self._told(SEVERAL, kind=type(optimizer).__name__)

    def end_step(self) -> None:
        """Take note that a step has ended. Optimizers that did not step in it may wait with gradients."""
        if len(self._known) > 1:
            for optimizer in self._known - self._stepped:
                gradient = _first_gradient(optimizer)
                if gradient is not None and optimizer not in self._waiting:
                    self._waiting[optimizer] = weakref.ref(gradient), version_of(gradient)
        self._stepped.clear()

    def have_gradients(self) -> bool:
        """Return True if any parameter of an optimizer of the framework has a gradient."""
        return any(_first_gradient(each) is not None for each in self._framework.optimizers)


def _first_gradient(optimizer: Any) -> torch.Tensor | None:
    return next((each.grad for each in parameters_of(optimizer) if each.grad is not None), None)
