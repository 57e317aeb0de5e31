"""The one list of dtypes: of tensors that can be stored, of arrays and scalars of numpy, and of dtypes as values."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

DTYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}
"""The dtypes of stored tensors, each with its name in a safetensors file and in a manifest."""

TORCH_DTYPES: Final = {name: dtype for dtype, name in DTYPES.items()}
"""The same list the other way round."""

ENCODABLE_DTYPES: Final = frozenset({*DTYPES, torch.complex128})
"""The dtypes of tensors in a state. A tensor of complex128 is stored as pairs of float64."""

_NOT_IN_NUMPY: Final = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def _plain_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


NUMPY_SCALARS: Final = {
    name: np.dtype(name) for name in map(_plain_name, ENCODABLE_DTYPES) if name not in _NOT_IN_NUMPY
}
"""The dtypes of numpy scalars in a state, by their names, for example ``float32``."""

ARRAY_DTYPES: Final = {each.str: each for dtype in NUMPY_SCALARS.values() for each in (dtype, dtype.newbyteorder())}
"""The dtypes of numpy arrays in a state, in both byte orders, by numpy's codes, for example ``<f4``."""

DTYPE_VALUES: Final = {_plain_name(value): value for value in vars(torch).values() if type(value) is torch.dtype}
"""Every dtype of torch, as a value in a state, by its name, for example ``bfloat16``."""
