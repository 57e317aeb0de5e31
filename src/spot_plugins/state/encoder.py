"""The encoding of Python state as JSON and tensors. ``document.py`` explains the tags."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch

from ..errors import UnsafeStateError
from ..format.manifest import Json, canonical_json
from .composed import is_composed
from .dtypes import ARRAY_DTYPES, ENCODABLE_DTYPES
from .leaves import LEAF_ENCODERS, MAX_INT, MIN_INT, encode_text_array
from .shard import Shard, is_dtensor, shard_of
from .tags import DICT_KINDS, FACTORIES

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MAX_DEPTH: Final = 64  # far below the recursion limits of Python and of JSON readers

_Memory: TypeAlias = tuple[torch.device, int, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Encoder:
    """One pass over a state. Each method returns the JSON of *value*, which lies at *path* in the state."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor | Shard] = {}
        self._name_of: dict[_Memory | int, str] = {}

    def encode(self, value: Any, path: str) -> Json:
        """Return the JSON of *value*, and add its tensors to ``tensors``."""
        kind = type(value)
        if path.count("/") > MAX_DEPTH:  # each level adds one
            raise UnsafeStateError(path, f"{_type_name(kind)} nested deeper than {MAX_DEPTH} levels")
        encoder = _ENCODERS.get(kind)
        if encoder is not None:
            return encoder(self, value, path)
        leaf = LEAF_ENCODERS.get(kind)
        if leaf is not None:
            return leaf(value)
        if is_dtensor(value):
            return self._dtensor(value, path)
        if is_composed(value):
            return self._composed(value, path)
        for name, known in DICT_KINDS.items():
            if kind is known:
                return {"$dict_kind": [name, self._dict(value, path)]}
        raise UnsafeStateError(path, _type_name(kind))

    def _child(self, value: Any, path: str, key: str | int) -> Json:
        # Most values are plain. They get no path and no further call, which halves the time of the whole pass.
        kind = type(value)
        if kind is str or kind is bool or value is None:
            return value  # type: ignore[no-any-return]
        if (kind is float and math.isfinite(value)) or (kind is int and MIN_INT <= value <= MAX_INT):
            return value  # type: ignore[no-any-return]
        name = segment(key) if type(key) is str else str(key)
        return self.encode(value, f"{path}/{name}" if path else name)

    def _list(self, value: list[Any] | tuple[Any, ...] | deque[Any], path: str) -> list[Json]:
        return [self._child(item, path, index) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: str) -> Json:
        return {"$tuple": self._list(value, path)}

    def _deque(self, value: deque[Any], path: str) -> Json:
        return {"$deque": [self._list(value, path), value.maxlen]}

    def _dict(self, value: dict[Any, Any], path: str) -> dict[str, Json]:
        keys = [*value]
        if [key for key in keys if type(key) is not str or key[:1] == "$"]:  # as a generator it takes twice as long
            return {"$dict": [self._pair(key, item, path) for key, item in value.items()]}
        body = {key: self._child(item, path, key) for key, item in value.items()}
        in_order = sorted(keys)
        if keys != in_order:
            place = {key: index for index, key in enumerate(in_order)}
            body["$order"] = [place[key] for key in keys]
        return body

    def _pair(self, key: Any, item: Any, path: str) -> Json:
        document = self._hashable(key, path, "dict with a key of type")
        segment = key if type(key) is str else canonical_json(document).decode().strip()
        return [document, self._child(item, path, segment)]

    def _ordered_dict(self, value: OrderedDict[Any, Any], path: str) -> Json:
        return {"$ordered_dict": self._dict(value, path)}

    def _counter(self, value: Counter[Any], path: str) -> Json:
        return {"$counter": self._dict(value, path)}

    def _defaultdict(self, value: defaultdict[Any, Any], path: str) -> Json:
        for name, factory in FACTORIES.items():
            if value.default_factory is factory:
                return {"$defaultdict": [name, self._dict(value, path)]}
        name = getattr(value.default_factory, "__qualname__", repr(value.default_factory))
        raise UnsafeStateError(path, f"collections.defaultdict with the factory {name}")

    def _set(self, value: set[Any] | frozenset[Any], path: str) -> Json:
        kind = type(value).__name__
        elements = [self._hashable(item, path, f"{kind} with an element of type") for item in value]
        return {f"${kind}": sorted(elements, key=canonical_json)}

    def _hashable(self, value: Any, path: str, role: str) -> Json:
        # A tensor is hashable, but by identity, so that nobody could find it again as a key. A key also has no path
        # from which the tensor could get a name.
        aside = Encoder()
        try:
            document = aside.encode(value, path)
        except UnsafeStateError as error:
            raise UnsafeStateError(path, f"{role} {error.type_name}") from None
        if aside.tensors:
            raise UnsafeStateError(path, f"{role} torch.Tensor")
        return document

    def _dtensor(self, value: DTensor, path: str) -> Json:
        try:
            shard = shard_of(value.detach())  # type: ignore[arg-type]
        except ValueError as error:
            raise UnsafeStateError(path, f"DTensor of which {error}") from error
        return self._named(id(value), shard, path)

    def _composed(self, value: Any, path: str) -> Json:
        names, context = value.__tensor_flatten__()
        kind = type(value)
        parts = {name: getattr(value, name) for name in names}
        content = [kind.__module__, kind.__qualname__, context, list(value.size()), list(value.stride())]
        return {"$composed": [self.encode(parts, path), self.encode(content, path)]}

    def _shard(self, shard: Shard, path: str) -> Json:
        return self._named(id(shard), shard, path)

    def _named(self, identity: int, shard: Shard, path: str) -> Json:
        """Name *shard*. It is known again by its identity, because this rank may hold no memory of a small tensor."""
        if identity not in self._name_of:
            _check(shard.local, path)
            if shard.local.dtype is torch.complex128:
                raise UnsafeStateError(path, "sharded torch.Tensor (torch.complex128)")
            self._name_of[identity] = self._new_name(shard, path)
        return {"$tensor": self._name_of[identity]}

    def _tensor(self, value: torch.Tensor, path: str) -> Json:
        _check(value, path)
        tensor = value.detach()
        if tensor.is_conj() or tensor.is_neg():  # the bytes in memory are not the values yet
            tensor = tensor.resolve_conj().resolve_neg()
        if tensor.dtype is torch.complex128:
            return {"$complex128": self._name(torch.view_as_real(tensor), path)}
        return {"$tensor": self._name(tensor, path)}

    def _name(self, tensor: torch.Tensor, path: str) -> str:
        # Known again by memory and not by identity, because each state_dict() wraps the same memory anew.
        address = tensor.data_ptr()
        memory = (tensor.device, address, tensor.dtype, tensor.shape, tensor.stride())
        if address and memory in self._name_of:
            return self._name_of[memory]
        self._name_of[memory] = name = self._new_name(tensor, path)
        return name

    def _new_name(self, tensor: torch.Tensor | Shard, path: str) -> str:
        name = path or "tensor"
        number = 2
        while name in self.tensors or name == "__metadata__":  # as in {0: a, "0": b}; a word of safetensors
            name = f"{path}%{number}"
            number += 1
        self.tensors[name] = tensor
        return name

    def _array(self, value: np.ndarray[Any, Any], path: str) -> Json:
        if value.dtype.kind in "US":
            return encode_text_array(value)
        if value.dtype.str not in ARRAY_DTYPES:
            raise UnsafeStateError(path, f"numpy.ndarray of dtype {value.dtype}")
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        if not (native.flags.writeable and native.flags.c_contiguous):  # torch has no view of these
            native = native.copy()
        return {"$numpy": [value.dtype.str, self._tensor(torch.from_numpy(native), path)]}


_ENCODERS: Final[dict[type, Callable[[Encoder, Any, str], Json]]] = {
    list: Encoder._list,
    tuple: Encoder._tuple,
    deque: Encoder._deque,
    dict: Encoder._dict,
    OrderedDict: Encoder._ordered_dict,
    Counter: Encoder._counter,
    defaultdict: Encoder._defaultdict,
    set: Encoder._set,
    frozenset: Encoder._set,
    torch.Tensor: Encoder._tensor,
    torch.nn.Parameter: Encoder._tensor,
    Shard: Encoder._shard,
    np.ndarray: Encoder._array,
}
"""The encoders of values that may hold others, by exact type. A subclass may mean more than its base."""


def _check(value: torch.Tensor, path: str) -> None:
    """Raise :exc:`UnsafeStateError` if the elements of *value*, found at *path*, cannot be stored."""
    if value.layout is not torch.strided or value.is_nested:
        raise UnsafeStateError(path, f"torch.Tensor ({'nested' if value.is_nested else value.layout})")
    if value.dtype not in ENCODABLE_DTYPES:
        raise UnsafeStateError(path, f"torch.Tensor ({value.dtype})")
    if value.is_meta:
        raise UnsafeStateError(path, "torch.Tensor (on the meta device, without data)")


def segment(key: str) -> str:
    """Return *key* as it is written in the name of a tensor, between two slashes."""
    if key.isalnum() and key.isascii():  # most keys, in a third of the time
        return key
    if not key.isascii():  # half of a surrogate pair is a string in Python, but cannot be stored
        key = key.encode("utf-8", "backslashreplace").decode()
    return key.replace("%", "%25").replace("/", "%2F") or "%"


def segments(name: str) -> list[str]:
    """Return the keys in the *name* of a tensor, each as :func:`segment` writes it."""
    return name.split("/")


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
