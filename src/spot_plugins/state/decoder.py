"""The decoding of JSON, which is not trusted, and tensors to Python state. ``document.py`` explains the tags."""

from __future__ import annotations

import base64
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import Any, Final, TypeVar

import numpy as np
import torch

from ..format.manifest import Json, ManifestError
from .dtypes import ARRAY_DTYPES, DTYPE_VALUES, NUMPY_SCALARS
from .tags import FACTORIES, FLOATS, PATHS

_MALFORMED: Final = (
    *(ValueError, TypeError, KeyError, OverflowError, struct.error),
    *(RuntimeError, NotImplementedError),  # torch.device("nonsense"); a Windows path on Linux
)

_T = TypeVar("_T")


class Decoder:
    """One pass over a document. The method of a tag returns the value for which the tag's *content* stands."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def decode(self, document: Json) -> Any:
        """Return the value for which *document* stands. Raise :exc:`ManifestError` if it is malformed."""
        if document is None or isinstance(document, (bool, int, float, str)):
            return document
        if isinstance(document, list):
            return [self.decode(item) for item in document]
        if not isinstance(document, dict):
            raise ManifestError(f"the state document holds a {type(document).__name__}, which is not JSON")
        tags = [key for key in document if key.startswith("$")]
        if not tags:
            return {key: self.decode(item) for key, item in sorted(document.items())}
        try:
            return self._tagged(document, tags)
        except (ManifestError, RecursionError):  # from further inside, where it was wrapped already
            raise
        except _MALFORMED as error:
            raise ManifestError(f"the state document has a malformed {tags[0]}: {error!r}") from error

    def _tagged(self, document: dict[str, Json], tags: list[str]) -> Any:
        if tags == ["$order"]:
            return self._reordered(document)
        if len(document) > 1 or tags[0] not in _DECODERS:
            raise ValueError("no such tag, or more keys beside it")
        return _DECODERS[tags[0]](self, document[tags[0]])

    def _reordered(self, document: dict[str, Json]) -> dict[str, Any]:
        keys = sorted(document.keys() - {"$order"})
        order = [_index(position) for position in _items(document["$order"])]
        if sorted(order) != [*range(len(keys))]:
            raise ValueError(f"not an order of {len(keys)} keys")
        return {keys[position]: self.decode(document[keys[position]]) for position in order}

    def _tensor(self, content: Any) -> torch.Tensor:
        return self._tensors[content]

    def _complex128(self, content: Any) -> torch.Tensor:
        pairs = self._tensors[content]
        if pairs.dtype is not torch.float64:
            raise ValueError(f"the pairs of {content} are {pairs.dtype}")
        return torch.view_as_complex(pairs)

    def _array(self, content: Any) -> np.ndarray[Any, Any]:
        name, tensor = _items(content)
        dtype = ARRAY_DTYPES[name]
        array = self._instance(tensor, torch.Tensor).numpy(force=True)
        if array.dtype != dtype.newbyteorder("="):
            raise ValueError(f"an array of {name} is stored as {array.dtype}")
        return array.astype(dtype, order="C", copy=True)

    def _numpy_scalar(self, content: Any) -> Any:
        name, digits = _items(content)
        dtype = NUMPY_SCALARS[name]
        return np.frombuffer(bytes.fromhex(digits), dtype.newbyteorder("<")).astype(dtype).reshape(())[()]

    def _int(self, content: Any) -> int:
        return int(content, 16)

    def _float(self, content: Any) -> float:
        # A new object each time, because two NaNs can be keys of one dict only if they are two objects.
        return float(struct.unpack(">d", bytes.fromhex(FLOATS.get(content, content)))[0])

    def _complex(self, content: Any) -> complex:
        real, imaginary = (self._instance(item, float) for item in _items(content))
        return complex(real, imaginary)

    def _bytes(self, content: Any) -> bytes:
        return base64.b64decode(content, validate=True)

    def _tuple(self, content: Any) -> tuple[Any, ...]:
        return tuple(self.decode(item) for item in _items(content))

    def _set(self, content: Any) -> set[Any]:
        return {self.decode(item) for item in _items(content)}

    def _frozenset(self, content: Any) -> frozenset[Any]:
        return frozenset(self._set(content))

    def _deque(self, content: Any) -> deque[Any]:
        items, maxlen = _items(content)
        return deque(self._instance(items, list), maxlen)

    def _dict(self, content: Any) -> dict[Any, Any]:
        pairs = [_items(pair) for pair in _items(content)]
        return {self.decode(key): self.decode(item) for key, item in pairs}

    def _ordered_dict(self, content: Any) -> OrderedDict[Any, Any]:
        return OrderedDict(self._instance(content, dict))

    def _counter(self, content: Any) -> Counter[Any]:
        return Counter(self._instance(content, dict))

    def _defaultdict(self, content: Any) -> defaultdict[Any, Any]:
        name, items = _items(content)
        return defaultdict(FACTORIES[name], self._instance(items, dict))

    def _size(self, content: Any) -> torch.Size:
        return torch.Size(map(_index, _items(content)))

    def _dtype(self, content: Any) -> torch.dtype:
        return DTYPE_VALUES[content]

    def _device(self, content: Any) -> torch.device:
        return torch.device(self._instance(content, str))

    def _path(self, content: Any) -> PurePath:
        name, path = _items(content)
        return PATHS[name](path)

    def _timedelta(self, content: Any) -> timedelta:
        days, seconds, microseconds = map(_index, _items(content))
        return timedelta(days, seconds, microseconds)

    def _instance(self, document: Any, kind: type[_T]) -> _T:
        value = self.decode(document)
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__} in the place of {kind.__name__}")
        return value


_DECODERS: Final[dict[str, Callable[[Decoder, Any], Any]]] = {
    "$tensor": Decoder._tensor,
    "$complex128": Decoder._complex128,
    "$numpy": Decoder._array,
    "$numpy_scalar": Decoder._numpy_scalar,
    "$int": Decoder._int,
    "$float": Decoder._float,
    "$complex": Decoder._complex,
    "$bytes": Decoder._bytes,
    "$tuple": Decoder._tuple,
    "$set": Decoder._set,
    "$frozenset": Decoder._frozenset,
    "$dict": Decoder._dict,
    "$ordered_dict": Decoder._ordered_dict,
    "$counter": Decoder._counter,
    "$defaultdict": Decoder._defaultdict,
    "$deque": Decoder._deque,
    "$size": Decoder._size,
    "$dtype": Decoder._dtype,
    "$device": Decoder._device,
    "$path": Decoder._path,
    "$timedelta": Decoder._timedelta,
}


def _items(content: Any) -> list[Any]:
    if not isinstance(content, list):  # a string or a dict would unpack as well
        raise ValueError(f"{type(content).__name__} in the place of list")
    return content


def _index(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{type(value).__name__} in the place of int")
    return value
