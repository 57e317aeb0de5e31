"""Keys that can name an object. All stores share this rule, so that a key of a test also works in a bucket."""

from __future__ import annotations

from typing import Final

TEMP_DIRECTORY: Final = ".spot-tmp"
"""First folder of keys that no object may have, because :class:`LocalStore` keeps unfinished files there."""


def is_object_key(key: str) -> bool:
    """
    Return whether *key* can name an object.

    A key is relative. None of its names is empty, ``.`` or ``..``. It contains no NUL, and no ``?`` or ``#``, at which
    fsspec cuts a version off a path.

    Keys are also read from manifests. Everybody who can write to the bucket can forge one, so a key such as
    ``../../etc/passwd`` must not lead out of the run.
    """
    names = key.split("/")
    return (
        names[0] != TEMP_DIRECTORY
        and not any(name in ("", ".", "..") for name in names)
        and not any(character in key for character in "\0?#")
    )


def check_object_key(key: str) -> None:
    """Raise :exc:`ValueError` unless *key* can name an object."""
    if not is_object_key(key):
        raise ValueError(f"{key!r} cannot name an object")
