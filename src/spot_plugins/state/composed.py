"""
Tensors that are composed of others, such as the 8-bit state of torchao's optimizers.

A class of such tensors follows torch's protocol: ``__tensor_flatten__()`` names the inner tensors, and
``__tensor_unflatten__()`` puts them together again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch


def is_composed(value: Any) -> bool:
    """Return True if *value* is a tensor of a class that follows the protocol."""
    return isinstance(value, torch.Tensor) and type(value) is not torch.Tensor and _follows(type(value))


def compose(module: str, name: str, parts: Mapping[str, torch.Tensor], context: Any, size: Any, stride: Any) -> Any:
    """
    Put a tensor together of its *parts*. Its class is looked up among those of the program, and nothing is imported.

    Raises:
        ValueError: The program has not imported such a class.
    """
    found: Any = sys.modules.get(module)
    for each in name.split("."):
        found = getattr(found, each, None)
    if not (isinstance(found, type) and issubclass(found, torch.Tensor) and _follows(found)):
        raise ValueError(f"{module}.{name} is no class of tensors that this program has imported")
    return found.__tensor_unflatten__(dict(parts), context, torch.Size(size), tuple(stride))  # type: ignore[attr-defined]


def _follows(kind: type) -> bool:
    return hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")
