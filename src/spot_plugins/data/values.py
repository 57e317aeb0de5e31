"""Comparison of nested values that may hold tensors and arrays, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

_PLAIN: Final = (int, float, str, bytes, bool, type(None))


def equal(one: Any, other: Any) -> bool:
    """Return True if two nested values of dicts, lists, tensors, arrays and plain values are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "tolist") and hasattr(other, "tolist"):
        return equal(one.tolist(), other.tolist())
    return type(one) is type(other) and bool(one == other)


def bytes_of(value: Any) -> bytes | None:
    """Return bytes that are equal for equal values in every process, or None if something in *value* has none."""
    if isinstance(value, Mapping):
        return bytes_of([item for pair in value.items() for item in pair])
    if isinstance(value, list | tuple):
        parts = list(map(bytes_of, value))
        return None if None in parts else b",".join(parts)  # type: ignore[arg-type]
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return None
        return value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    if hasattr(value, "tolist"):
        return bytes_of(value.tolist())
    return repr(value).encode() if type(value) in _PLAIN else None
