"""
The state of an optimizer after loading, bit for bit as it was saved.

``torch.optim.Optimizer.load_state_dict`` casts every tensor to the dtype of its parameter, so that float32 momentum of
a bfloat16 parameter is rounded. It also keeps the caller's tensors as its own, and spoils strings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch

from .composed import is_composed
from .shard import is_dtensor, local_tensor, memory_of, relabelled


def on_devices_of(live: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return *saved* with each tensor, such as a learning rate, on the device of the *live* one."""
    return {
        key: value.to(live[key].device)
        if isinstance(value, torch.Tensor) and isinstance(live.get(key), torch.Tensor)
        else value
        for key, value in saved.items()
    }


def exact(saved: Any, live: Any, parameter: torch.Tensor, *, may_keep: bool = False) -> Any:
    """
    Return *live*, state of *parameter* that was just loaded, with the types and bits of *saved*.

    With *may_keep*, tensors of *saved* itself are returned where they need no change.
    """
    if isinstance(saved, torch.Tensor) and isinstance(live, torch.Tensor):
        return _exact_tensor(saved, live, parameter, may_keep)
    if isinstance(saved, dict) and isinstance(live, dict):
        rebuilt = copy(saved)
        rebuilt.clear()
        rebuilt.update(
            {k: exact(saved[k], v, parameter, may_keep=may_keep) if k in saved else v for k, v in live.items()}
        )
        return rebuilt
    if type(saved) is not type(live):
        return live  # the optimizer has converted it on purpose
    if isinstance(saved, (list, tuple, deque)) and len(saved) == len(live):
        items = [exact(a, b, parameter, may_keep=may_keep) for a, b in zip(saved, live, strict=True)]
        return deque(items, saved.maxlen) if isinstance(saved, deque) else type(saved)(items)
    return copy(saved)


def _exact_tensor(saved: torch.Tensor, live: torch.Tensor, parameter: torch.Tensor, may_keep: bool) -> torch.Tensor:
    if saved.shape != live.shape:
        return live
    if is_dtensor(live):  # before composed tensors, because a DTensor follows their protocol too
        locals_ = (local_tensor(saved), local_tensor(live), local_tensor(parameter))
        return relabelled(live, _exact_tensor(*locals_, may_keep))
    if is_composed(saved):
        return saved.to(live.device)
    # An optimizer makes its state in the memory layout of the parameter. A checkpoint has only the values.
    model = parameter if saved.shape == parameter.shape else saved
    found = live if live.dtype == saved.dtype else saved
    in_place = found.device == live.device and found.stride() == torch.empty_like(model, device="meta").stride()
    if in_place and (may_keep or memory_of(found) != memory_of(saved)):
        return found
    return torch.empty_like(model, dtype=saved.dtype, device=live.device).copy_(saved)
