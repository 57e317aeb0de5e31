"""The meanings of names in a state document. Nothing else is ever looked up by name. Dtypes are in ``dtypes.py``."""

from __future__ import annotations

from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Final

PATHS: Final[dict[str, type[PurePath]]] = {
    kind.__name__: kind for kind in (PosixPath, PurePosixPath, PureWindowsPath, WindowsPath)
}
FACTORIES: Final[dict[str | None, type | None]] = {
    None: None,
    **{kind.__name__: kind for kind in (int, float, str, list, dict, set)},
}
DICT_KINDS: Final[dict[str, type[dict[str, object]]]] = {}
"""Subclasses of dict that hold nothing but their items, by the name in a ``$dict_kind``. Hosts add theirs."""
FLOATS: Final = {"inf": "7ff0000000000000", "-inf": "fff0000000000000", "nan": "7ff8000000000000"}
"""The bits of floats that JSON cannot write, hexadecimal and big-endian."""


def register_dict_kind(name: str, kind: type[dict[str, object]]) -> None:
    """Save each *kind*, a subclass of dict without state of its own, and give it back. *name* is what is stored."""
    DICT_KINDS[name] = kind
