"""What the names in a state document may mean. Nothing else is ever looked up by name."""

from __future__ import annotations

from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Final

import numpy as np
import torch

TENSOR_DTYPES: Final = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32}
    | {torch.uint64, torch.bool, torch.complex64, torch.complex128}
)
"""What can be stored: what safetensors holds, and complex128, which becomes pairs of float64."""

_NUMPY_NAMES: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
NUMPY_SCALARS: Final = {name: np.dtype(name) for name in _NUMPY_NAMES}
ARRAY_DTYPES: Final = {
    dtype.str: dtype for name in _NUMPY_NAMES for dtype in (np.dtype(name), np.dtype(name).newbyteorder())
}
TORCH_DTYPES: Final = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if type(value) is torch.dtype
}
PATHS: Final[dict[str, type[PurePath]]] = {
    kind.__name__: kind for kind in (PosixPath, PurePosixPath, PureWindowsPath, WindowsPath)
}
FACTORIES: Final[dict[str | None, type | None]] = {
    None: None,
    **{kind.__name__: kind for kind in (int, float, str, list, dict, set)},
}
FLOATS: Final = {"inf": "7ff0000000000000", "-inf": "fff0000000000000", "nan": "7ff8000000000000"}
"""The bits of floats that JSON cannot write, hexadecimal and big-endian."""
