"""The state of a model: parameters, buffers and extra state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Set
from copy import deepcopy
from typing import Any, Final

import torch
from torch import nn

from .alike import require_same, require_same_kinds
from .buckets import buckets_of
from .fsdp1 import flat_model_state, is_flat, load_extra_state
from .live_tensor import Changes, KnownMemory
from .part import ShardedPart, TensorPath
from .shard import Shard, is_dtensor, local_tensor, memory_of
from .wrappers import clean_name, copies_tensors, plain_module

LARGE_BYTES: Final = 64 * 1024
"""Smaller tensors among the extra state are not worth a blob of their own."""


class ModelPart(ShardedPart):
    """
    Parameters, buffers and extra state of a module, by fully qualified name.

    The names are those of the plain module. The words that DDP, FSDP and ``torch.compile`` add are left out, so that a
    checkpoint can be loaded with and without these wrappers. Tensors that are spread over the ranks (DTensors, flat
    parameters of FSDP1) stay where they are, and no communication is needed. As in any ``state_dict()``, buffers that
    are not persistent are not saved.
    """

    replicated = ("parameters",)

    def __init__(self, module: nn.Module) -> None:
        self._module = plain_module(module)
        self._buckets = buckets_of(module)

    @property
    def subject(self) -> nn.Module:
        """The module without the wrappers of data parallelism."""
        return self._module

    def state_dict(self) -> dict[str, Any]:
        """
        Return ``{"parameters": ..., "buffers": ..., "extra": ...}``, each by name, and ``"buckets"`` if DDP has some.

        This is the module's own ``state_dict()``, sorted into three, so hooks and overrides count. Under FSDP1 they do
        not count, because the hooks of FSDP1 gather all parameters on every rank. Extra state is everything else that
        the ``state_dict()`` holds, such as the result of ``get_extra_state()``.
        """
        if is_flat(self._module):
            return flat_model_state(self._module)
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in self._module.named_buffers(remove_duplicate=False)}
        state: dict[str, Any] = {"parameters": {}, "buffers": {}, "extra": {}}
        spread: dict[int, Any] = {}
        for name, value in self._module.state_dict().items():
            kind = "parameters" if name in parameters else "buffers" if name in buffers else "extra"
            # Tied parameters are one object, so that they are known again where this rank holds no element of them.
            if is_dtensor(value) and name in parameters:
                value = spread.setdefault(id(parameters[name]), value)
            state[kind][clean_name(name)] = value
        if self._buckets is not None and (order := self._buckets.order()):
            state["buckets"] = order
        return state

    def frozen_memory(self) -> Set[int]:
        """Return the addresses of the parameters for which no gradient is computed."""
        return {memory_of(local_tensor(each)) for each in self._module.parameters() if not each.requires_grad}

    def changes(self, path: TensorPath, tensor: torch.Tensor, known: KnownMemory) -> Changes:
        """Return that large tensors among the extra state never change. Quantized modules keep such tensors there."""
        found = known.changes_of(tensor)
        is_large_extra = len(path) > 1 and path[0] == "extra" and tensor.nbytes >= LARGE_BYTES
        return Changes.NEVER if found is Changes.ANYTIME and is_large_extra else found

    def copies(self, path: TensorPath) -> bool:
        """Return True for parameters and buffers. The module may keep extra state."""
        return copies_tensors(self._module) and path[0] in ("parameters", "buffers")

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
        # Parameters and buffers are only copied from. The module may keep the extra state that it is given.
        saved = {**state["parameters"], **state["buffers"], **deepcopy(state["extra"])}
        here = self._module.state_dict()
        own_names = {clean_name(name): name for name in here}
        require_same("model", saved.keys(), own_names.keys())
        require_same_kinds(saved, {name: here[own] for name, own in own_names.items()})
        incoming = OrderedDict((own, saved[name]) for name, own in own_names.items())
        # It holds the versions of the modules. Without it, a module converts the state as if it were ancient.
        incoming._metadata = getattr(here, "_metadata", None)  # type: ignore[attr-defined]
        if self._buckets is not None and "buckets" in state:
            self._buckets.restore(state["buckets"])
        # The names were compared above, because a module may leave some out of its own state_dict() on purpose.
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
