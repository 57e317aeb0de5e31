"""Comparison of nested values that may hold tensors and arrays."""

from __future__ import annotations

from typing import Any

import torch


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
