"""
Nested Python state as JSON, and the tensors in it by name. There is no pickle, and nothing is imported by name.

Values that JSON has stay as they are: ``None``, booleans, numbers, strings, lists, and dicts with string keys.
Every other value becomes an object whose only key is a *tag*, which begins with ``$``:

====================  ==================================================================================
``$tensor``           name of a tensor; the same memory again (tied weights) has the same name
``$complex128``       name of a float64 tensor with one dimension more, of size 2
``$composed``         ``[parts, [module, class, context, size, stride]]`` of a tensor that consists of others
``$numpy``            ``[dtype, tensor]``, for example ``["<f4", {"$tensor": "a/b"}]``
``$numpy_scalar``     ``[type, bytes]``, hexadecimal and little-endian
``$numpy_text``       ``[dtype, shape, items]``; arrays of strings, or of byte strings in base64
``$int``              hexadecimal; integers that need more than 64 bits
``$float``            ``inf``, ``-inf``, ``nan``; any other NaN: its bits, hexadecimal and big-endian
``$complex``          ``[real, imaginary]``
``$bytes``            base64
``$tuple``            list of the items
``$set, $frozenset``  list of the elements, in the order of their JSON
``$dict``             list of ``[key, value]``; dicts with other than plain string keys
``$ordered_dict``     the same as a dict
``$counter``          the same as a dict
``$defaultdict``      ``[factory, dict]``; the factory is null or one of a few built-in types
``$dict_kind``        ``[kind, dict]``; a subclass of dict that a host has made known
``$deque``            ``[items, maxlen]``
``$size``             list of the extents of a ``torch.Size``
``$dtype, $device``   as torch prints them, without ``torch.``
``$path``             ``[class, path]``
``$timedelta``        ``[days, seconds, microseconds]``
====================  ==================================================================================

A dict keeps its order although canonical JSON sorts keys. Unless the keys are sorted already, the object has a further
key ``$order``: a list with the position of each key, in the order of the dict, among the sorted keys. A dict with a key
that begins with ``$`` is written as ``$dict``, so that no user's key is taken for a tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

import torch

from ..format.manifest import Json, ManifestError
from .decoder import Decoder
from .encoder import Encoder
from .shard import Shard

if TYPE_CHECKING:
    from typing_extensions import TypeIs


def encode(state: Any, path: str = "") -> tuple[Json, dict[str, torch.Tensor | Shard]]:
    """
    Take *state* apart into a JSON document and tensors.

    The document is fit for :func:`~spot_plugins.format.manifest.canonical_json`, and the same state gives the same
    document and names. The name of a tensor consists of the keys that lead to it, with ``/`` between them; within a
    key, ``/`` is written ``%2F`` and ``%`` is written ``%25``. Types are told apart exactly, so that :func:`decode`
    returns the same types, bits and order of keys. These are not kept: memory layout, ``requires_grad``, attributes
    that were set on a container or tensor, and the identity of a list or dict that occurs twice.

    Args:
        state: The result of ``state_dict()`` methods.
        path: The beginning of the names of tensors and of the paths in errors, for example ``model``.

    Returns:
        The document, and the tensors by name. The tensors are detached but not copied, so their values change while
        training continues. In place of a DTensor there is this rank's :class:`~.shard.Shard`.

    Raises:
        UnsafeStateError: Something in *state* has no such form, or *state* is nested deeper than ``MAX_DEPTH`` levels,
            as state that contains itself is.
    """
    encoder = Encoder()
    return encoder.encode(state, path), encoder.tensors


def decode(document: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    """
    Put the state together that :func:`encode` took apart.

    Args:
        document: The result of :func:`encode`, written as JSON and read again or not. It is not trusted.
        tensors: At least the tensors that *document* names. They are returned as they are; arrays are copies.

    Raises:
        ManifestError: *document* is malformed, or names a tensor that is missing. This is a ValueError.
    """
    try:
        return Decoder(tensors).decode(document)
    except RecursionError:
        raise ManifestError("the state document is nested too deeply") from None


def graft(own: Json, other: Json, names: Set[str]) -> Json:
    """
    Return the document *own*, with the entries that only *other* has, if they hold a tensor in *names*.

    This adds tensors that all ranks share to the document of a rank that did not have them when it was saved.
    """
    if not (_is_dict(own) and _is_dict(other)):
        return own
    merged = {key: graft(item, other[key], names) if key in other else item for key, item in _in_order(own)}
    merged |= {key: item for key, item in _in_order(other) if key not in merged and not names.isdisjoint(named(item))}
    keys = [*merged]
    place = {key: index for index, key in enumerate(sorted(keys))}
    return merged if keys == sorted(keys) else {**merged, "$order": [place[key] for key in keys]}


def named(document: Json) -> Iterator[str]:
    """Yield the names of all tensors in *document*, malformed or not."""
    if isinstance(document, list):
        for item in document:
            yield from named(item)
    elif isinstance(document, dict):
        for key, item in document.items():
            if key in ("$tensor", "$complex128") and isinstance(item, str):
                yield item
            else:
                yield from named(item)


def _is_dict(document: Json) -> TypeIs[dict[str, Json]]:
    return isinstance(document, dict) and not any(key[:1] == "$" for key in document.keys() - {"$order"})


def _in_order(document: dict[str, Json]) -> list[tuple[str, Json]]:
    keys = sorted(document.keys() - {"$order"})
    order = document.get("$order", range(len(keys)))
    if sorted(order) != [*range(len(keys))]:  # type: ignore[arg-type, type-var]
        raise ManifestError(f"not an order of {len(keys)} keys")
    return [(keys[position], document[keys[position]]) for position in order]  # type: ignore[union-attr, index]
