"""
The places at which objects lie: variables of the program, and attributes and entries below them.

The walk begins at the variables of the program's own frames and modules, and at what the host names. It enters objects
of the program's own classes, and of libraries other than those that keep their state themselves. It never runs code of
the objects, such as properties.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CellType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from . import internals
from .samples import GENERATORS, is_plain

MAX_PLACES: Final = 20_000
MAX_DEPTH: Final = 7
MAX_ENTRIES: Final = 256

_CLOSED: Final = (sys.stdlib_module_names - {"types", "argparse", "collections"}) | {
    "torch", "torchdata", "torchmetrics", "numpy", "lightning", "pytorch_lightning", "lightning_utilities",
    "accelerate", "datasets", "pyarrow", "pandas", "fsspec", "spot_plugins", "pytest", "_pytest", "pluggy",
}  # fmt: skip
"""Packages whose objects are not entered: their state is their own affair, or known in another way."""


@dataclass(slots=True)
class Places:
    """The names of the objects that a walk has found."""

    names: dict[int, str] = field(default_factory=dict)
    """Names by ``id()``. They are valid as long as the objects exist."""
    owners: dict[int, int] = field(default_factory=dict)
    """``id()`` of the nearest object with ``state_dict()`` that holds an object, by the ``id()`` of the latter."""
    generators: list[Any] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    """Lists and dicts of tensors, at least two in each."""
    schedulers: list[Any] = field(default_factory=list)
    """Objects of any class that step, have state and hold an optimizer."""

    def name_of(self, thing: object) -> str:
        """Return the class of *thing* and its name, if one is known."""
        name = self.names.get(id(thing))
        return type(thing).__name__ + (f" `{name}`" if name else "")


def program_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield *frame* and its callers, as far as they belong to the program and not to a library."""
    while frame is not None:
        if not is_library_file(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def find_places(frames: Iterable[FrameType], roots: Iterable[tuple[str, object]]) -> Places:
    """Walk from the variables of *frames*, and from named *roots*, and return what lies there."""
    places = Places()
    waiting: deque[tuple[str, object, int, int]] = deque()
    for frame in frames:
        waiting.extend((name, value, 0, 0) for name, value in list(frame.f_locals.items()))
        if frame.f_globals is not frame.f_locals:
            waiting.extend((name, value, 1, 0) for name, value in list(frame.f_globals.items()))
    waiting.extend((name, value, 0, 0) for name, value in roots)
    num_left = MAX_PLACES
    while waiting and num_left > 0:
        name, thing, depth, owner = waiting.popleft()
        if id(thing) in places.names or thing is None or isinstance(thing, (str, bytes, int, float)):
            continue
        num_left -= 1
        places.names[id(thing)] = name
        places.owners[id(thing)] = owner
        _sort(thing, places)
        if depth < MAX_DEPTH:
            if not isinstance(thing, (nn.Module, Optimizer)) and hasattr(type(thing), "state_dict"):
                owner = id(thing)
            waiting.extend((each, value, depth + 1, owner) for each, value in _inside(name, thing))
    return places


def name_of(thing: object) -> str:
    """Return the class of *thing* and its name in the program that is running, if a variable leads to it."""
    return find_places(program_frames(sys._getframe(1)), ()).name_of(thing)


def optimizer_of(thing: object) -> Optimizer | None:
    """Return the attribute ``optimizer`` of *thing*, if it is one and *thing* is none."""
    if isinstance(thing, (Optimizer, nn.Module, type)):
        return None
    attributes = getattr(thing, "__dict__", None)
    found = attributes.get("optimizer") if isinstance(attributes, dict) else None
    return found if isinstance(found, Optimizer) else None


@lru_cache(maxsize=4096)
def is_library_file(path: str) -> bool:
    """Return True if *path* belongs to an installed package, to Python or to this package."""
    if path.startswith("<"):
        return path.startswith("<frozen")
    if "site-packages" in path or "dist-packages" in path:
        return True
    return path.startswith(_LIBRARY_FOLDERS)


_LIBRARY_FOLDERS: Final = (
    str(Path(__file__).parents[1]) + "/",
    *(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")),
)


def _sort(thing: object, places: Places) -> None:
    if isinstance(thing, GENERATORS):
        places.generators.append(thing)
    elif isinstance(thing, (list, tuple, dict)) and 2 <= len(thing) <= MAX_ENTRIES * 16:
        values = thing.values() if isinstance(thing, dict) else thing
        if all(isinstance(value, torch.Tensor) for value in values) and all(map(is_plain, values)):
            places.containers.append(thing)
    elif optimizer_of(thing) is not None and not is_closed(type(thing)) and _has_methods(thing, "step", "state_dict"):
        places.schedulers.append(thing)


def _has_methods(thing: object, *names: str) -> bool:
    return all(callable(getattr(type(thing), name, None)) for name in names)


def _inside(name: str, thing: Any) -> Iterator[tuple[str, object]]:
    """Yield the names and values in *thing* that the walk enters."""
    if isinstance(thing, dict):
        for key, value in list(islice(thing.items(), MAX_ENTRIES)):
            yield f"{name}[{key!r}]" if isinstance(key, (str, int)) else f"{name}[...]", value
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        for number, value in enumerate(list(islice(thing, MAX_ENTRIES))):
            yield f"{name}[{number}]", value
    elif isinstance(thing, FunctionType):
        yield from _closure(name, thing)
    elif isinstance(thing, MethodType):
        yield name, thing.__self__
    elif isinstance(thing, functools.partial):
        yield from ((name, value) for value in (thing.func, *thing.args, *thing.keywords.values()))
    elif isinstance(thing, ModuleType):
        file = getattr(thing, "__file__", None)
        if isinstance(file, str) and not is_library_file(file):
            yield from ((f"{name}.{key}", value) for key, value in list(vars(thing).items()))
    elif not isinstance(thing, (type, torch.Tensor, Optimizer)):
        for key, value in _attributes(thing):
            yield f"{name}.{key}", value


def _closure(name: str, function: FunctionType) -> Iterator[tuple[str, object]]:
    if is_library_file(function.__code__.co_filename):
        return
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if isinstance(cell, CellType):
            try:
                yield f"{key} in {name}()", cell.cell_contents
            except ValueError:
                continue  # an empty cell


def _attributes(thing: Any) -> Iterator[tuple[str, object]]:
    attributes = getattr(thing, "__dict__", None)
    attributes = dict(attributes) if isinstance(attributes, dict) else {}
    if isinstance(thing, nn.Module):
        if not is_closed(type(thing)):
            yield from ((key, value) for key, value in attributes.items() if key not in _OF_EVERY_MODULE)
        if internals.is_whole(thing):
            yield from thing.named_children()
    elif isinstance(thing, (DataLoader, Sampler)):  # their own generators depend on the epoch, by LoaderPosition
        hidden = ("generator", "__")  # Lightning keeps the arguments of a loader under names with underscores
        yield from ((key, value) for key, value in attributes.items() if not key.startswith(hidden))
    elif isinstance(thing, Dataset) or not is_closed(type(thing)):
        yield from attributes.items()
        for base in type(thing).__mro__:
            slots = vars(base).get("__slots__", ())
            for key in (slots,) if isinstance(slots, str) else slots:
                if isinstance(vars(base).get(key), _SLOT) and hasattr(thing, key):
                    yield key, getattr(thing, key)


_OF_EVERY_MODULE: Final = frozenset(vars(nn.Module()))


class _Slotted:
    __slots__ = ("slot",)


_SLOT: Final = type(vars(_Slotted)["slot"])


def is_closed(cls: type) -> bool:
    """Return True if *cls* belongs to a package whose objects are not entered."""
    package = getattr(cls, "__module__", None)
    return not isinstance(package, str) or package.partition(".")[0] in _CLOSED
