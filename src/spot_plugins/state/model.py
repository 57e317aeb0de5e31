"""The state of a model: parameters, buffers and extra state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import nn

from .alike import require_same, require_same_kinds
from .fsdp1 import clean_name, flat_model_state, is_flat, load_extra_state
from .shard import Shard, is_dtensor, local_part, memory_of


class ModelPart:
    """
    Parameters, buffers and extra state of a module, by fully qualified name.

    The names are those of the plain module: what DDP, FSDP and ``torch.compile`` add to them is left out, so a
    checkpoint can be loaded with and without them. What is spread over the ranks (DTensors, FSDP1's flat parameters)
    stays where it is: no communication is needed. Buffers that are not persistent are not saved, as usual.
    """

    replicated: ClassVar[tuple[str, ...]] = ("parameters",)

    def __init__(self, module: nn.Module) -> None:
        self._module = plain_module(module)

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"parameters": ..., "buffers": ..., "extra": ...}``, each by name.

        It is the module's own ``state_dict()``, sorted into three, so hooks and overrides count; but not under FSDP1,
        whose hooks would gather everything. What is neither a parameter nor a buffer, such as the result of
        ``get_extra_state()``, is extra.
        """
        if is_flat(self._module):
            return flat_model_state(self._module)
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in self._module.named_buffers(remove_duplicate=False)}
        state: dict[str, Any] = {"parameters": {}, "buffers": {}, "extra": {}}
        spread: dict[int, Any] = {}
        for name, value in self._module.state_dict().items():
            kind = "parameters" if name in parameters else "buffers" if name in buffers else "extra"
            if is_dtensor(value) and name in parameters:  # tied ones are one, also where this rank has no part of it
                value = spread.setdefault(id(parameters[name]), value)
            state[kind][clean_name(name)] = value
        return state

    def frozen_memory(self) -> set[int]:
        """Return where the parameters are that no gradient is computed for, as :func:`~.shard.memory_of` tells it."""
        return {memory_of(local_part(each)) for each in self._module.parameters() if not each.requires_grad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Copy *state* into the module's tensors, which stay the same objects.

        Raises:
            ValueError: Names, shapes or types of tensors differ. The message lists all of them; the module is
                unchanged.
        """
        if is_flat(self._module):
            self._load_flat(state)
            return
        # Parameters and buffers are copied from; what becomes of the extra state is up to the module.
        saved = {**state["parameters"], **state["buffers"], **deepcopy(state["extra"])}
        here = self._module.state_dict()
        own_names = {clean_name(name): name for name in here}
        require_same("model", saved.keys(), own_names.keys())
        require_same_kinds(saved, {name: here[own] for name, own in own_names.items()})
        incoming = OrderedDict((own, saved[name]) for name, own in own_names.items())
        # Without the versions in it, modules would take this for a state of before they had versions.
        incoming._metadata = getattr(here, "_metadata", None)  # type: ignore[attr-defined]
        # Strictness is above: a module may leave some names out of its own state_dict() on purpose.
        self._module.load_state_dict(incoming, strict=False)

    def _load_flat(self, state: Mapping[str, Any]) -> None:
        here = flat_model_state(self._module)
        for kind, tensors in here.items():
            require_same(f"model ({kind})", state[kind].keys(), tensors.keys())
        live = {name: value.local if isinstance(value, Shard) else value for name, value in here["parameters"].items()}
        live |= here["buffers"]
        saved = {**state["parameters"], **state["buffers"]}
        require_same_kinds(saved, live)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(saved[name])
        load_extra_state(self._module, deepcopy(state["extra"]))


def plain_module(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of data parallelism and of ``torch.compile``."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled  # torch.compile's wrapper, whose class is costly to import
        else:
            return module
