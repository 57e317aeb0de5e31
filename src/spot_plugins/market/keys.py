"""Keys of providers, from the places where their own tools keep them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from .base import ProviderError

_MAX_FILE_BYTES: Final = 64 * 1024
_ENTRY: Final = re.compile(r"^\s*api_?key\s*[=:]\s*[\"']?([^\"'\s#]+)", re.IGNORECASE | re.MULTILINE)


def find_key(variable: str, files: tuple[str, ...] = ()) -> str | None:
    """
    Return the key in the environment *variable*, or in the first of *files* that has one.

    A file holds the key alone, or a line ``api_key = KEY``.

    Raises:
        ProviderError: The key has characters that no key has. They would be sent, or shown by the library that refuses
            them.
    """
    found = os.environ.get(variable)
    where = variable
    for path in () if found else map(_path, files):
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(_MAX_FILE_BYTES)
        except (OSError, ValueError):
            continue
        entry = _ENTRY.search(text)
        if found := entry[1] if entry else "" if "=" in text else text:
            where = str(path)
            break
    if not found or not (key := found.strip()):
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ProviderError(f"the key in {where} has a space, a line break or another character that no key has")
    return key


def need_key(variable: str, files: tuple[str, ...] = ()) -> str:
    """Return the key as :func:`find_key` does. Raises :exc:`ProviderError` if there is none."""
    key = find_key(variable, files)
    if key is None:
        raise ProviderError(f"no key, so its offers are left out: set {' or write '.join([variable, *files[:1]])}")
    return key


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))
