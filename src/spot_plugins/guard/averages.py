"""Lists and dicts of tensors that are averaged weights, as people keep them without a module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from .look import Look
from .samples import is_plain, memory, samples_of

AVERAGING: Final = re.compile(r"ema|average|avg|shadow|swa|target|teacher|momentum|polyak", re.IGNORECASE)
"""Names of averages. A list of such a name is the same one if each step makes it anew."""


@dataclass(frozen=True, slots=True)
class _Seen:
    identity: int
    values: list[bytes]
    is_saved: bool


class Averages:
    """The lists and dicts that have as many tensors as what is trained, of the same shapes."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] | None = None

    def changed(self, look: Look) -> list[str]:
        """Return the names of those that have changed since the first look and were not saved then, each once."""
        found = {look.places.name_of(each): each for each in look.places.containers}
        if self._seen is None:
            shapes = _shapes_of_trained(look) if found else set()
            found = {name: each for name, each in found.items() if _shapes(_tensors(each)) in shapes}
            self._seen = {name: _seen(each, look) for name, each in found.items() if not _is_known(each, look)}
            return []
        names = []
        for name, seen in list(self._seen.items()):
            container = found.get(name)
            if seen.is_saved or container is None:
                continue
            is_same = id(container) == seen.identity or AVERAGING.search(name) is not None
            if is_same and samples_of(_tensors(container)) != seen.values:
                del self._seen[name]
                names.append(name)
        return names


def _seen(container: Any, look: Look) -> _Seen:
    recording, owner = look.recording(), look.places.owners.get(id(container), 0)
    is_held = id(container) in look.held
    is_saved = is_held or owner in recording.owners or any(map(recording.has, _tensors(container)))
    return _Seen(id(container), samples_of(_tensors(container)), is_saved)


def _is_known(container: Any, look: Look) -> bool:
    """Return True if the tensors in *container* are gradients, or belong to modules that are named themselves."""
    gradients = [each.grad for each in look.trained if each.grad is not None and is_plain(each.grad)]
    others = look.unsaved_memory | {memory(each) for each in gradients}
    return any(memory(tensor) in others for tensor in _tensors(container))


def _tensors(container: Any) -> list[torch.Tensor]:
    return list(container.values() if isinstance(container, dict) else container)


def _shapes_of_trained(look: Look) -> set[frozenset[tuple[torch.Size, int]]]:
    """Return the shapes of what each optimizer and each module has, with and without buffers and frozen parameters."""
    shapes = {_shapes(look.trained)}
    for module in look.census.roots():
        parameters = list(module.parameters())
        if parameters:
            trained = [each for each in parameters if each.requires_grad]
            shapes |= {_shapes(parameters), _shapes([*parameters, *module.buffers()]), _shapes(trained)}
    return shapes


def _shapes(tensors: Iterable[torch.Tensor]) -> frozenset[tuple[torch.Size, int]]:
    usual = [tensor.shape for tensor in tensors if not isinstance(tensor, nn.UninitializedParameter)]
    return frozenset(Counter(usual).items())
