"""The optimizers that train in this process, compared with those that are saved."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from ..state.shard import local_tensor, memory_of
from . import internals
from .handouts import Told

SEVERAL: Final = (
    "{kind} has gathered gradients over several batches, while another optimizer stepped. A save in between would lose "
    "these gradients. Call spot.after_step(stepped=False) for the batches after which it does not step"
)
UNSAVED: Final = (
    "{kind} trains, and its state is not saved, because it is not prepared. Pass it to accelerator.prepare(), or to "
    "spot.register(name, optimizer) before spot.resume()"
)


class Trainers:
    """Knows the optimizers that are saved, and names those that are not."""

    def __init__(self, accelerator: Accelerator, told: Told) -> None:
        self._accelerator = accelerator
        self._told = told
        self._holders: list[Any] = []  # objects whose state is saved, beside the models
        self._known: set[Optimizer] = set()  # saved, or named already
        self._unknown: list[Optimizer] = []
        self._stepped: set[Optimizer] = set()  # after the last step
        self._waiting: dict[Optimizer, tuple[weakref.ref[torch.Tensor], int]] = {}

    def save(self, registered: Iterable[Any]) -> None:
        """Learn what is saved: all that is prepared, and what is *registered*."""
        optimizers = [each.optimizer for each in internals.optimizers(self._accelerator)]
        self._holders = [*optimizers, *internals.custom_objects(self._accelerator), *registered]
        self._known.update(each for each in self._holders if isinstance(each, Optimizer))

    def step(self, optimizer: Optimizer) -> None:
        """Take note of a step of any *optimizer* of this process."""
        if optimizer not in self._known:
            self._known.add(optimizer)
            self._unknown.append(optimizer)
        self._stepped.add(optimizer)
        if self._waiting and (waiting := self._waiting.pop(optimizer, None)) is not None:
            gradient = _first_gradient(optimizer)
            # The same tensor with other values: nobody has cleared the gradients, and more were added to them.
            if gradient is not None and gradient is waiting[0]() and internals.version_of(gradient) > waiting[1]:
                self._told(SEVERAL, 5, kind=type(optimizer).__name__)

    def end_step(self) -> None:
        """Take note that a step has ended. Optimizers that did not step in it may wait with gradients."""
        if len(self._known) > 1:
            for optimizer in self._known - self._stepped:
                gradient = _first_gradient(optimizer)
                if gradient is not None and optimizer not in self._waiting:
                    self._waiting[optimizer] = weakref.ref(gradient), internals.version_of(gradient)
        self._stepped.clear()

    def have_gradients(self) -> bool:
        """Return True if any parameter of a prepared optimizer has a gradient."""
        return any(_first_gradient(each) is not None for each in internals.optimizers(self._accelerator))

    def name_unsaved(self) -> None:
        """Warn of optimizers that have stepped and are not saved."""
        while self._unknown:
            optimizer = self._unknown.pop()
            if not self._is_saved(optimizer):
                self._told(UNSAVED, 5, kind=type(optimizer).__name__)

    def _is_saved(self, optimizer: Optimizer) -> bool:
        """Return True if *optimizer* is a part of one that is saved, which wraps it."""
        own = {memory_of(each) for each in _tensors(list(optimizer.state.values()))}
        if own:
            saved = {memory_of(each) for holder in self._holders for each in _tensors(_state_of(holder))}
            return own <= saved
        trained = {each for holder in self._holders if isinstance(holder, Optimizer) for each in _parameters(holder)}
        return trained.issuperset(_parameters(optimizer))


def _state_of(holder: Any) -> Any:
    return [] if isinstance(holder, nn.Module) else holder.state_dict()


def _parameters(optimizer: Any) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _first_gradient(optimizer: Any) -> torch.Tensor | None:
    return next((each.grad for each in _parameters(optimizer) if each.grad is not None), None)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield local_tensor(state)
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
