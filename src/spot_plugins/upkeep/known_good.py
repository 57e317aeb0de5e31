"""The blobs that an interrupted verification has found good, in a file of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import xxhash

from ..clock import wall_time
from ..locations import absolute_url, cache_folder
from ..store import ObjectInfo
from .blobs import NamedBlob

MAX_AGE_S: Final = 7 * 86400.0
"""Age in seconds from which a blob is read again, because bytes on a disk may change without a put."""

SETTLED_S: Final = 60.0
"""
Age in seconds that a put must have when objects are listed, so that a blob is known afterwards.

Services tell the time of a put in whole seconds. A second put within the same second would not be seen.
"""


class KnownGood:
    """
    A file with a line for each blob that was found good, which a kill at any moment leaves readable.

    A blob is known if its manifests are the same, and if its object has the size and the time of the put that it had
    when it was read. If the file cannot be written, no blob is known. Not thread-safe.

    Args:
        url: URL of the run.
        choice: The rest of what decides which objects are verified. Another choice has another file.
    """

    def __init__(self, url: str, choice: Iterable[Any]) -> None:
        self._path: Path | None = None
        self._put_at: dict[str, float] = {}
        with suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
            folder = cache_folder() / "verify"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_old(folder)
            self._path = folder / f"{_hash((absolute_url(url), *choice))}.jsonl"
            self._put_at = dict(filter(None, map(_read_line, self._path.read_bytes().splitlines())))

    def has(self, named: NamedBlob, there: ObjectInfo | None) -> bool:
        """Return whether the blob was found good as it is stored now. *there* is its line in the listing."""
        return (
            there is not None
            and there.num_bytes == named.blob.num_bytes
            and there.modified_at is not None
            and self._put_at.get(_digest(named)) == there.modified_at
        )

    def add(self, named: NamedBlob, there: ObjectInfo | None) -> None:
        """Remember that the blob was found good. *there* was listed before it was read."""
        if self._path is None or there is None:
            return
        line = json.dumps([_digest(named), there.modified_at, wall_time()])
        # The first of the two line ends ends a line that was cut. If the disk is full, the blob is read again.
        with suppress(OSError), open(self._path, "a", opener=_open_private) as file:
            file.write(f"\n{line}\n")

    def forget(self) -> None:
        """Remove the file, because the verification has come to its end."""
        with suppress(OSError):
            if self._path is not None:
                self._path.unlink()


def settled(objects: Iterable[ObjectInfo], listed_at: float) -> Mapping[str, ObjectInfo]:
    """Return those of *objects* by key that were put :data:`SETTLED_S` before *listed_at*, the start of the listing."""
    return {
        each.key: each for each in objects if each.modified_at is not None and each.modified_at <= listed_at - SETTLED_S
    }


def _digest(named: NamedBlob) -> str:
    return _hash((named.blob, *sorted(map(repr, named.insides))))


def _hash(values: tuple[Any, ...]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(values).encode())


def _read_line(line: bytes) -> tuple[str, float] | None:
    """Return the digest of a blob and the time of its put. None if the line is cut, or old."""
    try:
        digest, put_at, read_at = json.loads(line)
        return (str(digest), put_at) if 0 <= wall_time() - read_at < MAX_AGE_S else None
    except (ValueError, TypeError):
        return None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _remove_old(folder: Path) -> None:
    """Remove the files of verifications that nobody has continued."""
    for each in folder.iterdir():
        with suppress(OSError):
            if wall_time() - each.stat().st_mtime > MAX_AGE_S:
                each.unlink()
