"""The decoding of JSON, which is not trusted, and tensors to Python state. ``document.py`` explains the tags."""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import torch

from ..format.manifest import Json, ManifestError
from .composed import compose
from .dtypes import ARRAY_DTYPES
from .leaves import LEAF_DECODERS, index_of, items_of
from .tags import DICT_KINDS, FACTORIES

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
        if len(document) == 1 and tags[0] in LEAF_DECODERS:
            return LEAF_DECODERS[tags[0]](document[tags[0]])
        if len(document) > 1 or tags[0] not in _DECODERS:
            raise ValueError("no such tag, or more keys beside it")
        return _DECODERS[tags[0]](self, document[tags[0]])

    def _reordered(self, document: dict[str, Json]) -> dict[str, Any]:
        keys = sorted(document.keys() - {"$order"})
        order = [index_of(position) for position in items_of(document["$order"])]
        if sorted(order) != [*range(len(keys))]:
            raise ValueError(f"not an order of {len(keys)} keys")
        return {keys[position]: self.decode(document[keys[position]]) for position in order}

    def _tensor(self, content: Any) -> torch.Tensor:
        return self._tensors[content]

    def _composed(self, content: Any) -> Any:
        parts, about = (self.decode(item) for item in items_of(content))
        module, name, context, size, stride = about
        if not (isinstance(parts, dict) and all(isinstance(part, torch.Tensor) for part in parts.values())):
            raise ValueError("the parts of a composed tensor are no tensors")
        return compose(module, name, parts, context, size, stride)

    def _complex128(self, content: Any) -> torch.Tensor:
        pairs = self._tensors[content]
        if pairs.dtype is not torch.float64:
            raise ValueError(f"the pairs of {content} are {pairs.dtype}")
        return torch.view_as_complex(pairs)

    def _array(self, content: Any) -> np.ndarray[Any, Any]:
        name, tensor = items_of(content)
        dtype = ARRAY_DTYPES[name]
        array = self._instance(tensor, torch.Tensor).numpy(force=True)
        if array.dtype != dtype.newbyteorder("="):
            raise ValueError(f"an array of {name} is stored as {array.dtype}")
        return array.astype(dtype, order="C", copy=True)

    def _complex(self, content: Any) -> complex:
        real, imaginary = (self._instance(item, float) for item in items_of(content))
        return complex(real, imaginary)

    def _tuple(self, content: Any) -> tuple[Any, ...]:
        return tuple(self.decode(item) for item in items_of(content))

    def _set(self, content: Any) -> set[Any]:
        return {self.decode(item) for item in items_of(content)}

    def _frozenset(self, content: Any) -> frozenset[Any]:
        return frozenset(self._set(content))

    def _deque(self, content: Any) -> deque[Any]:
        items, maxlen = items_of(content)
        return deque(self._instance(items, list), maxlen)

    def _dict(self, content: Any) -> dict[Any, Any]:
        pairs = [items_of(pair) for pair in items_of(content)]
        return {self.decode(key): self.decode(item) for key, item in pairs}

    def _ordered_dict(self, content: Any) -> OrderedDict[Any, Any]:
        return OrderedDict(self._instance(content, dict))

    def _counter(self, content: Any) -> Counter[Any]:
        return Counter(self._instance(content, dict))

    def _defaultdict(self, content: Any) -> defaultdict[Any, Any]:
        name, items = items_of(content)
        return defaultdict(FACTORIES[name], self._instance(items, dict))

    def _dict_kind(self, content: Any) -> dict[str, Any]:
        name, items = items_of(content)
        return DICT_KINDS[name](self._instance(items, dict))

    def _instance(self, document: Any, kind: type[_T]) -> _T:
        value = self.decode(document)
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__} in the place of {kind.__name__}")
        return value


_DECODERS: Final[dict[str, Callable[[Decoder, Any], Any]]] = {
    "$tensor": Decoder._tensor,
    "$complex128": Decoder._complex128,
    "$composed": Decoder._composed,
    "$numpy": Decoder._array,
    "$complex": Decoder._complex,
    "$tuple": Decoder._tuple,
    "$set": Decoder._set,
    "$frozenset": Decoder._frozenset,
    "$dict": Decoder._dict,
    "$ordered_dict": Decoder._ordered_dict,
    "$counter": Decoder._counter,
    "$defaultdict": Decoder._defaultdict,
    "$deque": Decoder._deque,
    "$dict_kind": Decoder._dict_kind,
}
