"""Which strings can name an object. One rule for all stores: what works in a test works in a bucket."""

from __future__ import annotations

from typing import Final

TEMP_DIRECTORY: Final = ".spot-tmp"
"""First part of a key that no object may have: :class:`LocalStore` keeps unfinished objects there."""


def is_object_key(key: str) -> bool:
    """
    Return whether *key* can name an object.

    It must be relative, no part of it may be empty, ``.`` or ``..``, and it has no NUL, and no ``?`` or ``#``,
    where fsspec cuts a version off a path. Keys also come out of manifests, which anyone who writes to the
    bucket can write; one such as ``../../etc/passwd`` must not lead out of the run.
    """
    parts = key.split("/")
    return (
        parts[0] != TEMP_DIRECTORY
        and not any(part in ("", ".", "..") for part in parts)
        and not any(character in key for character in "\0?#")
    )


def check_object_key(key: str) -> None:
    """Raise :exc:`ValueError` unless *key* can name an object."""
    if not is_object_key(key):
        raise ValueError(f"{key!r} cannot name an object")
