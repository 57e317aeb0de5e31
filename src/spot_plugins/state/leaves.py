"""
Values that hold no others, such as numbers, paths and dtypes: their JSON, and the way back.

``document.py`` explains the tags. The content of a tag is not trusted: a decoder raises an error of Python's own if it
is malformed, and :class:`~.decoder.Decoder` makes that a :exc:`ManifestError`.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch

from ..format.manifest import Json
from .dtypes import DTYPE_VALUES, NUMPY_SCALARS
from .tags import FLOATS, PATHS

MIN_INT: Final = -(2**63)  # outside of this range, JSON readers other than Python's lose digits or fail
MAX_INT: Final = 2**64 - 1

_NUMPY_NAMES: Final[dict[type, str]] = {dtype.type: name for name, dtype in NUMPY_SCALARS.items()}
_FLOAT_NAMES: Final = {bits: name for name, bits in FLOATS.items()}


def items_of(content: Any) -> list[Any]:
    """Return *content* if it is a list. Raise :exc:`ValueError` for a string or a dict, which would unpack as well."""
    if not isinstance(content, list):
        raise ValueError(f"{type(content).__name__} in the place of list")
    return content


def index_of(value: Any) -> int:
    """Return *value* if it is an integer, and not a boolean. Raise :exc:`ValueError` otherwise."""
    if type(value) is not int:
        raise ValueError(f"{type(value).__name__} in the place of int")
    return value


def _encode_int(value: int) -> Json:
    return value if MIN_INT <= value <= MAX_INT else {"$int": hex(value)}


def _decode_int(content: Any) -> int:
    return int(content, 16)


def _encode_float(value: float) -> Json:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value).hex()
    return {"$float": _FLOAT_NAMES.get(bits, bits)}


def _decode_float(content: Any) -> float:
    # A new object each time, because two NaNs can be keys of one dict only if they are two objects.
    return float(struct.unpack(">d", bytes.fromhex(FLOATS.get(content, content)))[0])


def _encode_complex(value: complex) -> Json:
    return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}


def _encode_bytes(value: bytes) -> Json:
    return {"$bytes": base64.b64encode(value).decode()}


def _decode_bytes(content: Any) -> bytes:
    return base64.b64decode(content, validate=True)


def _encode_numpy_scalar(value: np.generic[Any]) -> Json:
    little = np.asarray(value, dtype=value.dtype.newbyteorder("<"))
    return {"$numpy_scalar": [_NUMPY_NAMES[type(value)], little.tobytes().hex()]}


def _decode_numpy_scalar(content: Any) -> Any:
    name, digits = items_of(content)
    dtype = NUMPY_SCALARS[name]
    return np.frombuffer(bytes.fromhex(digits), dtype.newbyteorder("<")).astype(dtype).reshape(())[()]


def _encode_size(value: torch.Size) -> Json:
    return {"$size": [*value]}


def _decode_size(content: Any) -> torch.Size:
    return torch.Size(map(index_of, items_of(content)))


def _encode_dtype(value: torch.dtype) -> Json:
    return {"$dtype": str(value).removeprefix("torch.")}


def _decode_dtype(content: Any) -> torch.dtype:
    return DTYPE_VALUES[content]


def _encode_device(value: torch.device) -> Json:
    return {"$device": str(value)}


def _decode_device(content: Any) -> torch.device:
    if not isinstance(content, str):  # a number would be a device of CUDA
        raise ValueError(f"{type(content).__name__} in the place of str")
    return torch.device(content)


def _encode_path(value: PurePath) -> Json:
    return {"$path": [type(value).__name__, str(value)]}


def _decode_path(content: Any) -> PurePath:
    name, path = items_of(content)
    return PATHS[name](path)


def _encode_timedelta(value: timedelta) -> Json:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _decode_timedelta(content: Any) -> timedelta:
    days, seconds, microseconds = map(index_of, items_of(content))
    return timedelta(days, seconds, microseconds)


def encode_text_array(value: np.ndarray[Any, Any]) -> Json:
    """Return the JSON of an array of strings or byte strings."""
    items = value.reshape(-1).tolist()
    texts = [base64.b64encode(item).decode() for item in items] if value.dtype.kind == "S" else items
    return {"$numpy_text": [value.dtype.str, [*value.shape], texts]}


def _decode_text_array(content: Any) -> Any:
    name, shape, texts = items_of(content)
    dtype = np.dtype(name)
    if dtype.kind not in "US":
        raise ValueError(f"{name} is not a dtype of strings")
    items = [base64.b64decode(text, validate=True) for text in items_of(texts)] if dtype.kind == "S" else texts
    if any(type(item) is not (bytes if dtype.kind == "S" else str) for item in items_of(items)):
        raise ValueError("an array of strings holds something else")
    return np.array(items, dtype).reshape([index_of(extent) for extent in items_of(shape)])


LEAF_ENCODERS: Final[dict[type, Callable[[Any], Json]]] = {
    **dict.fromkeys((type(None), bool, str), lambda value: value),
    int: _encode_int,
    float: _encode_float,
    complex: _encode_complex,
    bytes: _encode_bytes,
    **dict.fromkeys(_NUMPY_NAMES, _encode_numpy_scalar),
    torch.Size: _encode_size,
    torch.dtype: _encode_dtype,
    torch.device: _encode_device,
    **dict.fromkeys(PATHS.values(), _encode_path),
    timedelta: _encode_timedelta,
}
"""By exact type. A subclass may mean more than its base."""

LEAF_DECODERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$bytes": _decode_bytes,
    "$numpy_scalar": _decode_numpy_scalar,
    "$numpy_text": _decode_text_array,
    "$size": _decode_size,
    "$dtype": _decode_dtype,
    "$device": _decode_device,
    "$path": _decode_path,
    "$timedelta": _decode_timedelta,
}
"""By tag. The tag of a complex number is among those of :mod:`.decoder`, because its content is two documents."""
