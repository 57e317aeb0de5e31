"""
The objects of a training whose state is saved, each with ``state_dict()`` and ``load_state_dict()``.

``state_dict()`` returns the tensors themselves, not copies: the caller copies them before training goes on.
``load_state_dict()`` keeps nothing of what it was given. Tensors below the keys in ``replicated`` are equal
on all data-parallel ranks; all others are each rank's own.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn


class ModelPart:
    """
    Parameters, buffers and extra state of a module, by fully qualified name.

    The names are those of the plain module: what DDP and ``torch.compile`` add to them is left out, so a
    checkpoint can be loaded with and without them. Buffers that are not persistent are not saved, as usual.
    """

    replicated: ClassVar[tuple[str, ...]] = ("parameters",)

    def __init__(self, module: nn.Module) -> None:
        self._module = _plain_module(module)

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"parameters": ..., "buffers": ..., "extra": ...}``, each by name.

        It is the module's own ``state_dict()``, sorted into three, so hooks and overrides count. What is
        neither a parameter nor a buffer, such as the result of ``get_extra_state()``, is extra.
        """
        parameters = {name for name, _ in self._module.named_parameters(remove_duplicate=False)}
        buffers = {name for name, _ in self._module.named_buffers(remove_duplicate=False)}
        state: dict[str, Any] = {"parameters": {}, "buffers": {}, "extra": {}}
        for name, value in self._module.state_dict().items():
            kind = "parameters" if name in parameters else "buffers" if name in buffers else "extra"
            state[kind][_plain_name(name)] = value
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Copy *state* into the module's tensors, which stay the same objects.

        Raises:
            ValueError: Names, shapes or types of tensors differ. The message lists all of them; the module is
                unchanged.
        """
        # Parameters and buffers are copied from; what becomes of the extra state is up to the module.
        saved = {**state["parameters"], **state["buffers"], **deepcopy(state["extra"])}
        here = self._module.state_dict()
        own_names = {_plain_name(name): name for name in here}
        _require_same("model", saved.keys(), own_names.keys())
        _require_same_kinds(saved, {name: here[own] for name, own in own_names.items()})
        incoming = OrderedDict((own, saved[name]) for name, own in own_names.items())
        # Without the versions in it, modules would take this for a state of before they had versions.
        incoming._metadata = getattr(here, "_metadata", None)  # type: ignore[attr-defined]
        # Strictness is above: a module may leave some names out of its own state_dict() on purpose.
        self._module.load_state_dict(incoming, strict=False)


class OptimizerPart:
    """
    State and settings of an optimizer, by the name that each parameter has in the module.

    So a checkpoint does not depend on the order of the parameters, except where the optimizer itself does,
    as LBFGS. A parameter that the module does not know is called ``unnamed.<group>.<index>``.
    """

    replicated: ClassVar[tuple[str, ...]] = ("state",)

    def __init__(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        self._optimizer = _plain_optimizer(optimizer)
        self._module = _plain_module(module)

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"state": {name: {...}}, "param_groups": [{..., "params": [name, ...]}, ...]}``.

        It is the optimizer's own ``state_dict()`` with names for its indices; what else an optimizer puts
        beside these two keys stays as it is.
        """
        own = self._optimizer.state_dict()
        name_of: dict[Any, str] = {}
        groups = []
        for group, names in zip(own["param_groups"], self._names(), strict=True):
            name_of.update(zip(group["params"], names, strict=True))
            groups.append({**group, "params": names})
        state = {name_of.get(key, key): value for key, value in own["state"].items()}
        return {**own, "state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Give the optimizer the saved state and settings, bit for bit.

        Raises:
            ValueError: The optimizer has other parameter groups, or other parameters in one of them. The
                message lists them; the optimizer is unchanged.
        """
        names = self._names()
        if type(self._optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
            state = deepcopy(dict(state))  # it may keep what it gets, anywhere
        saved_groups = state["param_groups"]
        if len(saved_groups) != len(names):
            raise ValueError(f"the optimizer has {len(names)} parameter groups, saved were {len(saved_groups)}")
        for index, (group, here) in enumerate(zip(saved_groups, names, strict=True)):
            _require_same(f"parameter group {index} of the optimizer", group["params"], here)
        indices = {name: index for index, name in enumerate(name for group in names for name in group)}
        groups = [
            {**_on_devices_of(live, saved), "params": [indices[name] for name in here]}
            for live, saved, here in zip(self._optimizer.param_groups, saved_groups, names, strict=True)
        ]
        by_index = {indices.get(name, name): value for name, value in state["state"].items()}
        self._optimizer.load_state_dict({**state, "state": by_index, "param_groups": groups})
        self._restore_exactly(state["state"], names)

    def _names(self) -> list[list[str]]:
        """Return the names of all parameters, group by group, in the optimizer's order."""
        known: dict[int, str] = {}
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            known.setdefault(id(parameter), _plain_name(name))  # tied weights: the first name
        return [
            [known.get(id(p), f"unnamed.{number}.{index}") for index, p in enumerate(group["params"])]
            for number, group in enumerate(self._optimizer.param_groups)
        ]

    def _restore_exactly(self, saved: Mapping[Any, Any], names: list[list[str]]) -> None:
        """
        Undo what torch does to the state while it loads it.

        It casts every tensor to the type of its parameter (float32 momentum of a bfloat16 parameter would be
        rounded), keeps the caller's tensors as its own, and spoils strings.
        """
        for group, names_of_group in zip(self._optimizer.param_groups, names, strict=True):
            for parameter, name in zip(group["params"], names_of_group, strict=True):
                if name in saved and parameter in self._optimizer.state:
                    live = self._optimizer.state[parameter]
                    self._optimizer.state[parameter] = _exact(saved[name], live, parameter)


class RngPart:
    """
    The global random number generators of this process: Python, numpy, torch, and each CUDA device's.

    CUDA is left out as long as nothing has used it. Generators that other objects own are theirs to save.
    """

    replicated: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return the states; ``cuda`` is a list, one tensor per visible device."""
        uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if uses_cuda else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all. CUDA devices without a saved state, and states without a device, are left alone."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        for index, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state, index)


def _plain_module(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled  # torch.compile's wrapper, whose class is costly to import
        else:
            return module


def _plain_name(name: str) -> str:
    """Return *name* without what ``torch.compile`` adds for a submodule that it wraps."""
    return name.replace("_orig_mod.", "")


def _plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """
    Return what a host has wrapped.

    A wrapper with state of its own, such as a lookahead optimizer, is not one of a host: it is saved itself.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer) and inner.state is optimizer.state:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def _require_same(what: str, saved: Iterable[str], here: Iterable[str]) -> None:
    missing = sorted(set(here) - set(saved))
    unexpected = sorted(set(saved) - set(here))
    if missing or unexpected:
        raise ValueError(f"the saved {what} does not fit: missing {missing}, unexpected {unexpected}")


def _require_same_kinds(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    wrong = []
    for name, value in here.items():
        if isinstance(value, torch.Tensor):
            expected, actual = _kind(value), _kind(saved[name])
            if actual != expected:
                wrong.append(f"{name} is {expected}, saved as {actual}")
    if wrong:
        raise ValueError(f"the saved model does not fit: {'; '.join(wrong)}")


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


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
    # Optimizers make their state in the memory layout of the parameter; a checkpoint has only values.
    model = parameter if saved.shape == parameter.shape else saved
    in_layout = live.stride() == torch.empty_like(model, device="meta").stride()
    is_own = live.untyped_storage().data_ptr() != saved.untyped_storage().data_ptr()
    if is_own and in_layout and live.dtype == saved.dtype:
        return live
    return torch.empty_like(model, dtype=saved.dtype, device=live.device).copy_(saved)
