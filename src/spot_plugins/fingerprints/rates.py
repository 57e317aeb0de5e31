"""A hash of the learning rates, momentums and weight decays of all parameter groups."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final

import torch
from torch.optim import Optimizer

from .record import hash_32

SETTINGS: Final = ("lr", "weight_decay", "momentum", "betas")
"""The settings of a group that schedulers change."""

MOST_GROUPS: Final = 8
"""Groups of one optimizer that are looked at in one step. More of them take turns."""

_FORMAT: Final = 2  # of marshal: the newer ones depend on how often an object is referred to
_UNKNOWN: Final = "unknown"  # a value on a device, for which a look would have to wait, or no number at all


class Rates:
    """Looks at the settings of optimizers."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = [(each, _getter_of(each.param_groups[0])) for each in optimizers if each.param_groups]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers, without those that have no parameters."""
        return [optimizer for optimizer, _ in self._optimizers]

    def look(self, step: int) -> int:
        """Return a hash of the settings after *step*. 0 if there is no optimizer."""
        values: list[Any] = []
        try:
            for optimizer, get in self._optimizers:
                groups = optimizer.param_groups
                if len(groups) > MOST_GROUPS:
                    groups = _turn(groups, step)
                values += [get(group) for group in groups]
            return hash_32(marshal.dumps(values, _FORMAT)) if values else 0
        except (ValueError, KeyError):  # a tensor; a group without one of the settings
            return self._look_closely(step)

    def _look_closely(self, step: int) -> int:
        values = [
            _plain(group.get(name))
            for optimizer, _ in self._optimizers
            for group in _turn(optimizer.param_groups, step)
            for name in SETTINGS
        ]
        return hash_32(marshal.dumps(values, _FORMAT))


def _getter_of(group: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    names = [name for name in SETTINGS if name in group]
    return itemgetter(*names) if names else lambda group: ()  # itemgetter() needs a name


def _turn(groups: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return the groups whose turn it is in *step*."""
    if len(groups) <= MOST_GROUPS:
        return groups
    first = step * MOST_GROUPS % len(groups)
    return [*groups, *groups[:MOST_GROUPS]][first : first + MOST_GROUPS]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_plain(each) for each in value)
    if isinstance(value, torch.Tensor):
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else _UNKNOWN
    return value if type(value) in (int, float, bool, type(None)) else _UNKNOWN
