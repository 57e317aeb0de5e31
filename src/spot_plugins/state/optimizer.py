"""
The objects of a training whose state is saved, each with ``state_dict()`` and ``load_state_dict()``.

``state_dict()`` returns the tensors themselves, not copies: the caller copies them before training goes on.
``load_state_dict()`` keeps nothing of what it was given. Tensors below the keys in ``replicated`` are equal
on all data-parallel ranks; all others are each rank's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from ..errors import UnsafeStateError
from .alike import require_same
from .encoder import segment
from .fsdp1 import FlatPiece, clean_name, flat_pieces
from .model import plain_module
from .shard import Shard, is_dtensor, local_part, memory_of, relabelled, shard_of


class OptimizerPart:
    """
    State and settings of an optimizer, by the name that each parameter has in the module.

    So a checkpoint does not depend on the order of the parameters, except where the optimizer itself does,
    as LBFGS. A parameter that the module does not know is called ``unnamed.<group>.<index>``.

    State of the size of a parameter that is spread over the ranks is spread like it.
    """

    replicated: ClassVar[tuple[str, ...]] = ("state",)

    def __init__(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        self._optimizer = _plain_optimizer(optimizer)
        self._module = plain_module(module)

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"state": {name: {...}}, "param_groups": [{..., "params": [name, ...]}, ...]}``.

        It is the optimizer's own ``state_dict()`` with names for its indices; what else an optimizer puts
        beside these two keys stays as it is. A flat parameter of FSDP1 has as many names as parameters in it.

        Raises:
            UnsafeStateError: A DTensor in the state has not the shape of its parameter.
        """
        own = self._optimizer.state_dict()
        state: dict[Any, Any] = {}
        groups = []
        known = set()
        for group, trained in zip(own["param_groups"], self._trained(), strict=True):
            for key, (parameter, parts) in zip(group["params"], trained, strict=True):
                known.add(key)
                if key in own["state"]:
                    for name, piece in parts:
                        state[name] = _part_of_state(own["state"][key], name, parameter, piece)
            groups.append({**group, "params": [name for _, parts in trained for name, _ in parts]})
        state |= {key: value for key, value in own["state"].items() if key not in known}
        return {**own, "state": state, "param_groups": groups}

    def templates(self) -> dict[str, Shard]:
        """Return how this rank holds each parameter that is spread over the ranks, by the place of its state."""
        found: dict[str, Shard] = {}
        for trained in self._trained():
            for parameter, parts in trained:
                for name, piece in parts:
                    if piece is not None:
                        found[f"state/{segment(name)}"] = piece.shard(parameter)
                    elif is_dtensor(parameter):
                        found[f"state/{segment(name)}"] = shard_of(parameter.detach())  # type: ignore[arg-type]
        return found

    def trained_memory(self) -> set[int]:
        """
        Return what only :meth:`torch.optim.Optimizer.step` changes, as :func:`~.shard.memory_of` tells it apart.

        Empty for an optimizer whose steps cannot be waited for: one that is not torch's, or that skips its hooks.
        """
        if not getattr(type(self._optimizer).step, "hooked", False):
            return set()
        return {memory_of(local_part(each)) for group in self._optimizer.param_groups for each in group["params"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Give the optimizer the saved state and settings, bit for bit.

        Raises:
            ValueError: The optimizer has other parameter groups, or other parameters in one of them. The
                message lists them; the optimizer is unchanged.
        """
        trained_groups = self._trained()
        if type(self._optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
            state = deepcopy(dict(state))  # it may keep what it gets, anywhere
        saved_groups = state["param_groups"]
        if len(saved_groups) != len(trained_groups):
            raise ValueError(
                f"the optimizer has {len(trained_groups)} parameter groups, saved were {len(saved_groups)}"
            )
        by_index: dict[Any, Any] = {}
        groups = []
        loaded = []
        left = dict(state["state"])
        index = 0
        for number, (live, saved, trained) in enumerate(
            zip(self._optimizer.param_groups, saved_groups, trained_groups, strict=True)
        ):
            here = [name for _, parts in trained for name, _ in parts]
            require_same(f"parameter group {number} of the optimizer", saved["params"], here)
            indices = [*range(index, index + len(trained))]
            index += len(trained)
            groups.append({**_on_devices_of(live, saved), "params": indices})
            for own_index, (parameter, parts) in zip(indices, trained, strict=True):
                found = {name: left.pop(name) for name, _ in parts if name in left}
                whole_state = _whole_state(found, parameter, parts)
                if whole_state is not None:
                    by_index[own_index] = whole_state
                    loaded.append((parameter, whole_state))
        self._optimizer.load_state_dict({**state, "state": by_index | left, "param_groups": groups})
        self._restore_exactly(loaded)

    def _trained(self) -> list[list[_Trained]]:
        """Return all parameters, group by group, in the optimizer's order, and what is in each of them."""
        pieces: dict[int, list[_NamedPart]] = {}
        for piece in flat_pieces(self._module):
            pieces.setdefault(id(piece.owner), []).append((piece.name, piece))
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            pieces.setdefault(id(parameter), [(clean_name(name), None)])  # tied weights: the first name
        return [
            [
                (parameter, pieces.get(id(parameter), [(f"unnamed.{number}.{index}", None)]))
                for index, parameter in enumerate(group["params"])
            ]
            for number, group in enumerate(self._optimizer.param_groups)
        ]

    def _restore_exactly(self, loaded: list[tuple[torch.Tensor, Any]]) -> None:
        """
        Undo what torch does to the state while it loads it.

        It casts every tensor to the type of its parameter (float32 momentum of a bfloat16 parameter would be
        rounded), keeps the caller's tensors as its own, and spoils strings.
        """
        for parameter, saved in loaded:
            if parameter in self._optimizer.state:
                live = self._optimizer.state[parameter]
                self._optimizer.state[parameter] = _exact(saved, live, parameter)


_NamedPart: TypeAlias = "tuple[str, FlatPiece | None]"
"""The name of a parameter, and where it is in a flat one if FSDP1 has put it there."""

_Trained: TypeAlias = "tuple[torch.Tensor, list[_NamedPart]]"
"""What an optimizer takes for one parameter, and what it is made of."""


def _part_of_state(state: Any, name: str, parameter: torch.Tensor, piece: FlatPiece | None) -> Any:
    """Return what *state*, of *parameter*, says of the part called *name*."""
    if not isinstance(state, dict):
        return state
    part = {}
    for key, value in state.items():
        if is_dtensor(value) and value.shape != parameter.shape:
            raise UnsafeStateError(f"{name}/{key}", "DTensor of another shape than its parameter")
        if piece is not None and isinstance(value, torch.Tensor):
            value = piece.shard(value) if value.numel() == parameter.numel() and value.ndim else piece.common(value)
        part[key] = value
    return part


def _whole_state(found: dict[str, Any], parameter: torch.Tensor, parts: list[_NamedPart]) -> Any:
    """Put the state of *parameter* together from that of its parts; None if there is none, or nothing to train here."""
    if not found:
        return None
    flat = [(found[name], piece) for name, piece in parts if piece is not None and name in found]
    if not flat:
        return found[parts[0][0]]
    if parameter.numel() == 0:
        return None
    held = [(state, piece) for state, piece in flat if piece.stop > piece.start] or flat
    state = copy(held[0][0])
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.ndim and value.numel() == held[0][1].stop - held[0][1].start:
            together = torch.zeros(parameter.numel(), dtype=value.dtype)
            for part, piece in held:
                together[piece.start : piece.stop] = part[key].reshape(-1)
            state[key] = together.view(parameter.shape)
    return state


def _plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """
    Return what a host has wrapped.

    A wrapper with state of its own, such as a lookahead optimizer, is not one of a host: it is saved itself.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer) and inner.state is optimizer.state:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def _on_devices_of(live: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return *saved* with each tensor, such as a learning rate, where the *live* one is."""
    return {
        key: value.to(live[key].device)
        if isinstance(value, torch.Tensor) and isinstance(live.get(key), torch.Tensor)
        else value
        for key, value in saved.items()
    }


def _exact(saved: Any, live: Any, parameter: torch.Tensor) -> Any:
    """Return *live*, state of *parameter* that was just loaded, with the types and bits of *saved*."""
    if isinstance(saved, torch.Tensor) and isinstance(live, torch.Tensor):
        return _exact_tensor(saved, live, parameter)
    if isinstance(saved, dict) and isinstance(live, dict):
        rebuilt = copy(saved)
        rebuilt.clear()
        rebuilt.update({k: _exact(saved[k], v, parameter) if k in saved else v for k, v in live.items()})
        return rebuilt
    if type(saved) is not type(live):
        return live  # the optimizer converts it
    if isinstance(saved, (list, tuple, deque)) and len(saved) == len(live):
        items = [_exact(a, b, parameter) for a, b in zip(saved, live, strict=True)]
        return deque(items, saved.maxlen) if isinstance(saved, deque) else type(saved)(items)
    return copy(saved)


def _exact_tensor(saved: torch.Tensor, live: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if saved.shape != live.shape:
        return live
    if is_dtensor(live):
        return relabelled(live, _exact_tensor(local_part(saved), local_part(live), local_part(parameter)))
    # Optimizers make their state in the memory layout of the parameter; a checkpoint has only values.
    model = parameter if saved.shape == parameter.shape else saved
    in_layout = live.stride() == torch.empty_like(model, device="meta").stride()
    is_own = live.untyped_storage().data_ptr() != saved.untyped_storage().data_ptr()
    if is_own and in_layout and live.dtype == saved.dtype:
        return live
    return torch.empty_like(model, dtype=saved.dtype, device=live.device).copy_(saved)
