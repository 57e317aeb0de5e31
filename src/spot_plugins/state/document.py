"""
Nested Python state as JSON, and the tensors in it by name. No pickle; nothing is imported by name.

What JSON has stays as it is: ``None``, booleans, numbers, strings, lists, and dicts with string keys.
Everything else is an object whose only key is a *tag*, which begins with ``$``:

====================  ==================================================================================
``$tensor``           name of a tensor; a tensor met before (tied weights) has the name of that place
``$complex128``       name of a float64 tensor with one dimension more, of size 2
``$numpy``            ``[dtype, tensor]``, for example ``["<f4", {"$tensor": "a/b"}]``
``$numpy_scalar``     ``[type, bytes]``, hexadecimal and little-endian
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
``$deque``            ``[items, maxlen]``
``$size``             list of the extents of a ``torch.Size``
``$dtype, $device``   as torch prints them, without ``torch.``
``$path``             ``[class, path]``
``$timedelta``        ``[days, seconds, microseconds]``
====================  ==================================================================================

A dict keeps its order although canonical JSON sorts keys: unless it was sorted, its object has a further
key ``$order``, the list of the positions that its keys, in their order, have among the sorted keys. A
dict with a key that begins with ``$`` takes the form of ``$dict``, so no user's key is taken for a tag.
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

    The document is fit for :func:`~spot_plugins.format.manifest.canonical_json`, and the same state gives the
    same document and names. A tensor's name is its place, with ``/`` between keys and within a key
    ``%2F`` for ``/`` and ``%25`` for ``%``. Types are told apart exactly; what :func:`decode` returns has
    the same types, bits and order of keys. It does not keep: memory layout, ``requires_grad``,
    attributes that were set on a container or tensor, and that two places are the same list or dict.

    Args:
        state: What ``state_dict()`` methods return.
        path: Begins the tensors' names and the places in errors, for example ``model``.

    Returns:
        The document, and the tensors by name, detached but not copied: they change as training goes on. Of a
        DTensor it is this rank's :class:`~.shard.Shard`.

    Raises:
        UnsafeStateError: Something in *state* has no such form, or it is nested deeper than
            ``MAX_DEPTH`` levels, as state that contains itself is.
    """
    encoder = Encoder()
    return encoder.encode(state, path), encoder.tensors


def decode(document: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    """
    Put together what :func:`encode` took apart.

    Args:
        document: What :func:`encode` returned, also after a way through JSON. It is not trusted.
        tensors: At least the tensors that *document* names. They are returned as they are; arrays are
            copies.

    Raises:
        ManifestError: *document* is malformed, or names a tensor that is not there. It is a ValueError.
    """
    try:
        return Decoder(tensors).decode(document)
    except RecursionError:
        raise ManifestError("the state document is nested too deeply") from None


def graft(own: Json, other: Json, names: Set[str]) -> Json:
    """
    Return the document *own* with those entries of *other*'s dicts that it lacks and that hold a tensor in *names*.

    So what another rank knows of tensors that all share gets into a document that has never heard of them.
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
