"""The state of an optimizer, by the names of the parameters that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from .alike import require_same
from .encoder import segment
from .exact import exact, on_devices_of
from .live_tensor import Changes, KnownMemory
from .part import ShardedPart, TensorPath
from .shard import Shard, is_dtensor, local_tensor, memory_of, shard_of
from .trained import Trained, state_of_parameter, state_of_piece, trained_by
from .wrappers import copies_tensors, plain_module, plain_optimizer


class OptimizerPart(ShardedPart):
    """
    State and settings of an optimizer, by the name that each parameter has in the module.

    Because of the names, a checkpoint does not depend on the order of the parameters, unless the optimizer itself does,
    as LBFGS. A parameter that the module does not know is called ``unnamed.<group>.<index>``.

    If a parameter is spread over the ranks, state of its size is spread in the same way.
    """

    replicated = ("state",)

    def __init__(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        self._optimizer = plain_optimizer(optimizer)
        self._module = plain_module(module)

    @property
    def subject(self) -> torch.optim.Optimizer:
        """The optimizer without the wrappers of a host."""
        return self._optimizer

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"state": {name: {...}}, "param_groups": [{..., "params": [name, ...]}, ...]}``.

        This is the optimizer's own ``state_dict()`` with names for its indices. Other keys of it stay as they are. A
        flat parameter of FSDP1 has as many names as there are original parameters in it.

        Raises:
            UnsafeStateError: A DTensor in the state does not have the shape of its parameter.
        """
        own = self._optimizer.state_dict()
        state: dict[Any, Any] = {}
        groups = []
        known = set()
        for group, trained in zip(own["param_groups"], self._trained(), strict=True):
            for key, (parameter, pieces) in zip(group["params"], trained, strict=True):
                known.add(key)
                if key in own["state"]:
                    for piece in pieces:
                        state[piece.name] = state_of_piece(own["state"][key], parameter, piece)
            groups.append({**group, "params": _names(trained)})
        state |= {key: value for key, value in own["state"].items() if key not in known}
        return {**own, "state": state, "param_groups": groups}

    def trained_memory(self) -> Set[int]:
        """
        Return the addresses of the parameters, which only :meth:`torch.optim.Optimizer.step` changes.

        There are none if the steps of the optimizer cannot be held back for a copy.
        """
        if not self._runs_step_hooks:
            return frozenset()
        return {memory_of(local_tensor(each)) for group in self._optimizer.param_groups for each in group["params"]}

    def changes(self, path: TensorPath, tensor: torch.Tensor, known: KnownMemory) -> Changes:
        """Return that the state of parameters changes in a step, and leave everything else to the default."""
        if self._runs_step_hooks and len(path) > 1 and path[0] == "state":
            return Changes.IN_STEP
        return super().changes(path, tensor, known)

    def template_finder(self) -> Callable[[TensorPath], Shard | None]:
        """Return a function that finds the shard of the parameter to which a tensor of the state belongs."""
        shards: dict[str, Shard] = {}
        for group in self._trained():
            for parameter, pieces in group:
                for name, flat in pieces:
                    if flat is not None:
                        shards[segment(name)] = flat.shard(parameter)
                    elif is_dtensor(parameter):
                        shards[segment(name)] = shard_of(parameter.detach())  # type: ignore[arg-type]
        return lambda path: shards.get(path[1]) if len(path) > 1 and path[0] == "state" else None

    def copies(self, path: TensorPath) -> bool:
        """Return True for the state of parameters, unless the optimizer has a ``load_state_dict()`` of its own."""
        return copies_tensors(self._optimizer) and path[0] == "state"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Give the optimizer a copy of the saved state and settings, bit for bit.

        Raises:
            ValueError: The optimizer has other parameter groups, or other parameters in one of them. The
                message lists them; the optimizer is unchanged.
        """
        self._load(state, may_keep=False)

    def take_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load *state* as :meth:`load_state_dict` does, without a second copy of tensors that are where they belong."""
        self._load(state, may_keep=True)

    def _load(self, state: Mapping[str, Any], *, may_keep: bool) -> None:
        if not copies_tensors(self._optimizer):
            state = deepcopy(dict(state))  # because the optimizer may keep references to anything in it
        saved_groups, trained_groups = state["param_groups"], self._trained()
        if len(saved_groups) != len(trained_groups):
            raise ValueError(
                f"the optimizer has {len(trained_groups)} parameter groups, saved were {len(saved_groups)}"
            )
        by_index: dict[Any, Any] = {}
        groups = []
        loaded = []
        left = dict(state["state"])
        index = 0
        for number, (live, saved, group) in enumerate(
            zip(self._optimizer.param_groups, saved_groups, trained_groups, strict=True)
        ):
            require_same(f"parameter group {number} of the optimizer", saved["params"], _names(group))
            indices = [*range(index, index + len(group))]
            index += len(group)
            groups.append({**on_devices_of(live, saved), "params": indices})
            for own_index, trained in zip(indices, group, strict=True):
                found = {piece.name: left.pop(piece.name) for piece in trained.pieces if piece.name in left}
                of_parameter = state_of_parameter(found, trained)
                if of_parameter is not None:
                    by_index[own_index] = of_parameter
                    loaded.append((trained.parameter, of_parameter))
        if copies_tensors(self._optimizer):
            self._optimizer.state.clear()  # before the new state is made, because a device may not have room for both
        self._optimizer.load_state_dict({**state, "state": by_index | left, "param_groups": groups})
        for parameter, of_parameter in loaded:
            if parameter in self._optimizer.state:
                live = self._optimizer.state[parameter]
                self._optimizer.state[parameter] = exact(of_parameter, live, parameter, may_keep=may_keep)

    @property
    def _runs_step_hooks(self) -> bool:
        """True if each step runs torch's hooks, by which :mod:`~spot_plugins.save.copier` holds the step back."""
        return getattr(type(self._optimizer).step, "hooked", False)

    def _trained(self) -> list[list[Trained]]:
        return trained_by(self._optimizer, self._module)


def _names(group: list[Trained]) -> list[str]:
    return [piece.name for trained in group for piece in trained.pieces]


def by_index(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with the numbers that torch gives to parameters, in place of their names."""
    numbers: dict[str, int] = {}
    groups = []
    for group in optimizer["param_groups"]:
        first = len(numbers)
        numbers |= {name: first + index for index, name in enumerate(group["params"])}
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {
        **optimizer,
        "state": {numbers.get(name, name): value for name, value in optimizer["state"].items()},
        "param_groups": groups,
    }
