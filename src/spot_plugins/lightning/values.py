"""Values of attributes, compared with earlier ones, recorded without pickle, and given back."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from copy import copy
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from ..errors import UnsafeStateError
from ..state import encode, memory_of
from .internals import tensor_version

MAX_BYTES: Final = 64 * 2**20
"""Most bytes of tensors and arrays in one attribute. Whatever is larger is data, or should be a buffer."""
MAX_ITEMS: Final = 100_000
"""Most items in one attribute, at all levels together. Each save writes them down on the training thread."""
MAX_TENSORS: Final = 4096
"""Most tensors in one attribute, unless it is a list of tensors of one shape."""


class TooLargeError(Exception):
    """A value is larger than an attribute may be."""


class UnsavableError(Exception):
    """A value cannot be recorded. The message is its type; empty if nothing is lost."""


class Recorder:
    """
    Compares and records the values of attributes at one moment.

    Args:
        tensors: The tensors of the model. What shares their memory is saved with the model.
        known: Objects that are saved in another way.
        root: Name of the package, or module, that the program's own classes are from.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], known: Iterable[object], root: str) -> None:
        self._owned = {memory_of(tensor) for tensor in tensors if not tensor.is_meta and type(tensor) in _TENSORS}
        self._known = {id(each) for each in known}
        self._root = root

    def fingerprint(self, value: Any) -> Any:
        """Return what :meth:`changed` compares. Tensors in it are copies."""
        try:
            _, document, tensors = self._described(value)
        except (TooLargeError, UnsavableError):
            return _identity(value)
        return _Fingerprint(document, {name: tensor.clone() for name, tensor in tensors.items()})

    def changed(self, value: Any, fingerprint: Any) -> dict[str, Any] | None:
        """
        Return *value* in a form that can be saved, or None if it has not changed since its *fingerprint*.

        Generators and objects with ``state_dict()`` count as changed.

        Raises:
            TooLargeError: It has changed and is too large.
            UnsavableError: It has changed and cannot be saved, or is saved with the model or the optimizers.
        """
        try:
            record, document, tensors = self._described(value)
        except (TooLargeError, UnsavableError):
            if fingerprint == _identity(value):
                return None
            raise
        is_same = isinstance(fingerprint, _Fingerprint) and fingerprint.is_of(document, tensors)
        return None if is_same and record["kind"] not in ("stateful", "generator") else record

    def held(self, value: Any) -> Iterator[object]:
        """Yield *value* and all that is in it, if it can be recorded, or if a warning will say that it is too large."""
        try:
            self._described(value)
        except UnsavableError:
            return
        except TooLargeError:
            pass
        yield from self._inside(vars(value) if self._has_fields(value) else value)
        yield value

    def _described(self, value: Any) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """Return the record of *value*, and that record as JSON and tensors."""
        record = self._record(value)
        if record["kind"] == "stateful":  # a comparison would need a copy of all of it
            return record, None, {}
        try:
            return record, *encode(record)
        except UnsafeStateError as error:
            raise UnsavableError(error.type_name) from None

    def _record(self, value: Any) -> dict[str, Any]:
        if id(value) in self._known or isinstance(value, (nn.Module, Optimizer)):
            raise UnsavableError
        if isinstance(value, Enum):
            return {"kind": "enum", "type": type(value).__qualname__, "value": value.name}
        if (state := _state_of_generator(value)) is not None:
            return {"kind": "generator", "value": state}
        if type(value) is list and _is_uniform(value):
            self._check(value[0], _Budget())
            if len(value) * value[0].nbytes > MAX_BYTES:
                raise TooLargeError(f"is larger than {MAX_BYTES >> 20} MiB")
            stack = torch.stack([item.detach() for item in value])
            return {"kind": "stack", "value": stack, "on_device": not value[0].is_cpu}
        if _is_stateful(value):
            return {"kind": "stateful", "value": _state_of(value)}
        if self._has_fields(value):
            fields = vars(value)
            on_device = self._check(fields, _Budget())
            return {"kind": "fields", "type": type(value).__qualname__, "value": dict(fields), "on_device": on_device}
        return {"kind": "plain", "on_device": self._check(value, _Budget()), "value": value}

    def _has_fields(self, value: Any) -> bool:
        """Return True if *value* is an object of one of the program's own classes."""
        return type(value).__module__.partition(".")[0] == self._root and hasattr(value, "__dict__")

    def _inside(self, value: Any) -> Iterator[object]:
        """Yield the lists, dicts, sets and tuples in *value*, and *value* itself, and what is in all of them."""
        yield value
        items = value.values() if isinstance(value, Mapping) else value
        for each in items if isinstance(value, (Mapping, list, tuple, deque, Set)) else ():
            if type(each) not in _SCALARS:
                yield from self._inside(each)

    def _check(self, value: Any, budget: _Budget) -> bool:
        """Check that *value* can be saved, and return True if a tensor in it is on a device."""
        budget.spend(value)
        kind = type(value)
        if kind in _TENSORS:
            if kind is nn.Parameter or (value.numel() and memory_of(value) in self._owned):
                raise UnsavableError
            return not value.is_cpu
        items: Iterable[Any] = ()
        if isinstance(value, Mapping):
            items = value.values()
        elif isinstance(value, (list, tuple, deque, Set)):
            items = value
        found = [self._check(item, budget) for item in items if type(item) not in _SCALARS or budget.spend(item)]
        if kind not in _CONTAINERS:
            self._check_leaf(value)
        return any(found)

    def _check_leaf(self, value: Any) -> None:
        try:
            encode(value)
        except UnsafeStateError as error:
            raise UnsavableError(error.type_name) from None


class _Fingerprint(NamedTuple):
    """The record of a value, as JSON and copies of its tensors."""

    document: Any
    tensors: dict[str, Any]

    def is_of(self, document: Any, tensors: dict[str, Any]) -> bool:
        """Return True if this is the record that *document* and *tensors* describe."""
        return (
            document == self.document
            and tensors.keys() == self.tensors.keys()
            and all(same_tensor(tensor, self.tensors[name]) for name, tensor in tensors.items())
        )


class _Budget:
    """The size that one attribute may still have."""

    def __init__(self) -> None:
        self._items, self._tensors, self._bytes = MAX_ITEMS, MAX_TENSORS, MAX_BYTES

    def spend(self, value: Any) -> bool:
        """Subtract *value* without what is in it. Always returns False."""
        self._items -= 1
        if isinstance(value, (torch.Tensor, np.ndarray)):
            self._tensors -= 1
            self._bytes -= value.nbytes
        elif isinstance(value, (str, bytes)):
            self._bytes -= len(value)
        if self._bytes < 0:
            raise TooLargeError(f"is larger than {MAX_BYTES >> 20} MiB")
        if self._items < 0 or self._tensors < 0:
            raise TooLargeError(f"has more than {MAX_ITEMS} items or {MAX_TENSORS} tensors")
        return False


def restored(holder: Any, name: str, record: dict[str, Any], device: torch.device) -> bool:
    """Give the attribute *name* of *holder* the value of *record*. Return False if that is impossible."""
    kind, value, present = record["kind"], record.get("value"), getattr(holder, name, None)
    if isinstance(holder, nn.Module) and name in _registered(holder):
        return True
    if kind == "lost":
        return present is not None
    if record.get("on_device"):
        value = _moved(value, device)
    if kind == "generator":
        return _load_generator(present, value)
    if kind == "stateful":
        if not _is_stateful(present):
            return False
        present.load_state_dict(value)  # type: ignore[union-attr]
    elif kind == "fields":
        if type(present).__qualname__ != record["type"]:
            return False
        if is_dataclass(present) and _is_frozen(present):
            present = copy(present)  # others may use it as a constant
            vars(holder)[name] = present
        vars(present).clear()
        vars(present).update(value)  # type: ignore[arg-type]
    elif kind == "enum":
        if type(present).__qualname__ != record["type"]:
            return False
        vars(holder)[name] = type(present)[value]  # type: ignore[index]
    elif kind == "stack":
        _set(holder, name, present, [item.clone() for item in value])  # type: ignore[union-attr]
    else:
        _set(holder, name, present, value)
    return True


def same_tensor(one: Any, other: Any) -> bool:
    """Return True if both are tensors with the same values, wherever they are."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other.to(one.device))


def _set(holder: Any, name: str, present: Any, value: Any) -> None:
    """Set the attribute in place if possible, because the program may know the object under another name as well."""
    if type(present) is type(value) is list:
        present[:] = value
    elif type(present) is type(value) is dict:
        present.clear()
        present.update(value)
    elif isinstance(present, torch.Tensor) and present.is_leaf and present.requires_grad:
        with torch.no_grad():
            present.copy_(value)
    else:
        vars(holder)[name] = value


def _is_frozen(value: Any) -> bool:
    return bool(value.__dataclass_params__.frozen)


def _identity(value: Any) -> Any:
    length = len(value) if isinstance(value, (list, dict, set, deque)) else None
    items = (value.values() if isinstance(value, dict) else value) if length and length <= MAX_ITEMS else ()
    return "identity", id(value), length, tensor_version(value), [tensor_version(each) for each in items]


def _is_uniform(values: list[Any]) -> bool:
    if len(values) < 2 or type(values[0]) is not torch.Tensor:
        return False
    first = values[0]
    return all(
        type(item) is torch.Tensor and (item.shape, item.dtype, item.device) == (first.shape, first.dtype, first.device)
        for item in values
    )


def _is_stateful(value: Any) -> bool:
    if isinstance(value, (nn.Module, Optimizer, DataLoader, Dataset, Callback, LightningDataModule, type, Mapping)):
        return False
    methods = (getattr(type(value), name, None) for name in ("state_dict", "load_state_dict"))
    return all(callable(method) for method in methods) and not hasattr(type(value), "__iter__")


def _state_of(value: Any) -> Any:
    try:
        state = value.state_dict()
        encode(state)
    except Exception as error:
        raise UnsavableError(type(value).__qualname__) from error
    return state


def _state_of_generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return None


def _load_generator(generator: Any, state: Any) -> bool:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        return False
    return True


def _registered(module: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in module.named_parameters(recurse=False))
    yield from (name for name, _ in module.named_buffers(recurse=False))
    yield from (name for name, _ in module.named_children())


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, deque):
        return deque((_moved(item, device) for item in value), value.maxlen)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _moved(item, device)
    return value


_SCALARS: Final = frozenset({int, float, bool, str, type(None)})
_TENSORS: Final = (torch.Tensor, nn.Parameter)
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset, deque})
