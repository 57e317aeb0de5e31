"""A hash of the learning rates, momentums and weight decays of all parameter groups."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import torch

from ..state import OptimizerPart
from .record import hash_32

SETTINGS: Final = ("lr", "weight_decay", "momentum", "betas")
"""The settings of a group that schedulers change."""

MOST_GROUPS: Final = 8
"""Groups of one optimizer that are looked at in one step. More of them take turns."""

_ABSENT: Final = -1.0
_UNKNOWN: Final = -2.0  # a value on a device, for which a look would have to wait, or no number at all


def look(optimizers: Iterable[OptimizerPart], step: int) -> int:
    """Return a hash of the settings after *step*. 0 if there is no optimizer."""
    values: list[float] = []
    for part in optimizers:
        groups = part.param_groups
        if len(groups) > MOST_GROUPS:
            first = step * MOST_GROUPS % len(groups)
            groups = [*groups, *groups[:MOST_GROUPS]][first : first + MOST_GROUPS]
        for group in groups:
            for name in SETTINGS:
                value = group.get(name, _ABSENT)
                if type(value) is float:
                    values.append(value)
                else:
                    _append(value, values)
    return hash_32(struct.pack(f"<{len(values)}d", *values)) if values else 0


def _append(value: Any, values: list[float]) -> None:
    if isinstance(value, tuple | list):
        for each in value:
            _append(each, values)
    elif isinstance(value, int | float) or (
        isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() == 1
    ):
        values.append(float(value))
    else:
        values.append(_UNKNOWN)
