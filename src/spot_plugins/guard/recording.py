"""
The record of what one save reads: which objects are asked for their state, and which memory they return.

No list of known classes says what is saved, because a part of the user may save other objects with its own. So a
profile function of Python listens while the parts are asked for their states.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Set
from types import FrameType
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..state.scaler import ScalerPart
from ..state.shard import Shard, local_tensor
from .samples import comparable, is_plain, memory, parameters_of

_ASKED: Final = frozenset({"state_dict", "get_state", "getstate"})
_MAX_DEPTH: Final = 12


class Recording:
    """The objects and the memory that were read when the states of all parts were taken."""

    def __init__(self) -> None:
        self.owners: set[int] = set()
        """``id()`` of the objects whose state was returned and is not empty."""
        self._of_optimizers: set[int] = set()  # id() of the state and of the parameters of the optimizers among them
        self._modules: list[nn.Module] = []
        self._cloned: set[int] = set()  # id() of tensors of modules whose state was returned as copies
        self._memory: set[int] = set()
        self._generators: set[object] = set()
        self._copies: dict[torch.Size, list[torch.Tensor]] = {}

    def take(self, states: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call *states*, record what it reads, and return its result."""
        sys.setprofile(self._on_call)
        try:
            result = states()
        finally:
            sys.setprofile(None)
        self._add(result, 0)
        for module in self._modules:
            tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if is_plain(tensor)]
            if not any(memory(tensor) in self._memory for tensor in tensors):
                self._cloned.update(map(id, tensors))
        self._modules.clear()
        return result

    def has(self, tensor: torch.Tensor) -> bool:
        """Return True if a plain *tensor* is saved: its memory, or a copy that its module was asked for."""
        return memory(tensor) in self._memory or id(tensor) in self._cloned

    def has_optimizer(self, optimizer: Optimizer) -> bool:
        """
        Return True if the state of *optimizer* is saved, maybe by another optimizer that wraps it.

        The two share the state, or the tensors of the state. Without tensors they train the same parameters.
        """
        if id(optimizer.state) in self._of_optimizers:
            return True
        states = [state for state in optimizer.state.values() if isinstance(state, Mapping)]
        tensors = [each for state in states for each in state.values() if is_plain(each)]
        if tensors:
            return all(map(self.has, tensors))
        return all(id(each) in self._of_optimizers for each in parameters_of(optimizer))

    def has_copy_of(self, tensor: torch.Tensor, trained: Set[int]) -> bool:
        """
        Return True if a saved tensor has the values of a plain *tensor*. Ask only right after the recording.

        Memory in *trained* is not that of a copy.
        """
        local = local_tensor(tensor).detach()
        return any(
            other.dtype == local.dtype and memory(other) not in trained and torch.equal(other.to(local.device), local)
            for other in self._copies.get(local.shape, ())
        )

    def has_generator_state(self, state: object) -> bool:
        """Return True if *state*, as of :func:`~.samples.state_of`, is among what is saved."""
        return state in self._generators

    def forget_copies(self) -> None:
        """Let go of all tensors."""
        self._copies.clear()

    def _on_call(self, frame: FrameType, event: str, result: Any) -> None:
        if event == "return":
            code = frame.f_code
            if code.co_name in _ASKED and code.co_argcount and result is not None:
                self._add_owner(frame.f_locals.get(code.co_varnames[0]), result, frame.f_back)
        elif event == "c_call" and getattr(result, "__name__", "") in _ASKED:
            self.owners.add(id(getattr(result, "__self__", None)))

    def _add_owner(self, owner: object, result: Any, caller: FrameType | None) -> None:
        if isinstance(result, Mapping) and not result:
            return
        if isinstance(owner, nn.Module):
            # A module asks its children in the same way, and may leave out what they return.
            if caller is None or caller.f_code.co_name != "state_dict":
                self._modules.append(owner)
            return
        self.owners.add(id(owner))
        if isinstance(owner, ScalerPart):  # it does not ask the scaler
            self.owners.add(id(owner.subject))
        if isinstance(owner, Optimizer):
            self._of_optimizers.add(id(owner.state))
            self._of_optimizers.update(map(id, parameters_of(owner)))

    def _add(self, value: Any, depth: int) -> None:
        if isinstance(value, Shard):
            value = value.local
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._generators.add(value.tobytes())
        elif depth < _MAX_DEPTH and isinstance(value, Mapping):
            if "bit_generator" in value:
                self._generators.add(comparable(dict(value)))
            for each in value.values():
                self._add(each, depth + 1)
        elif depth < _MAX_DEPTH and isinstance(value, (list, tuple)):
            if len(value) == 3 and isinstance(value[1], tuple) and len(value[1]) == 625:  # of Python's generator
                self._generators.add(comparable(value))
            else:
                for each in value:
                    self._add(each, depth + 1)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if not is_plain(tensor):
            return
        self._memory.add(memory(tensor))
        local = local_tensor(tensor).detach()
        self._copies.setdefault(local.shape, []).append(local)
        if tensor.dtype is torch.uint8 and tensor.device.type == "cpu":
            self._generators.add(tensor.numpy().tobytes())
