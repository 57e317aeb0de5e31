"""Comparisons of saved state with the objects into which it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def require_same(what: str, saved: Iterable[str], here: Iterable[str]) -> None:
    """Raise :exc:`ValueError` unless the names *saved* for *what* are the names *here*."""
    missing = sorted(set(here) - set(saved))
    unexpected = sorted(set(saved) - set(here))
    if missing or unexpected:
        raise ValueError(f"the saved {what} does not fit: missing {missing}, unexpected {unexpected}")


def require_same_kinds(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise :exc:`ValueError` unless each tensor *here* has the dtype and shape with which it was *saved*."""
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
