"""Local copies that nobody needs any more, and file systems that are memory."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from typing import Final

from ..clock import wall_time
from .private import own_directory

KEPT_S: Final = 14 * 86400.0
"""Time without a write after which the local copies of a run are removed."""

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def sweep(used: str | None) -> None:
    """
    Remove what runs have left in the default directory of this user, if nothing was written there for :data:`KEPT_S`.

    Args:
        used: The directory of the present run, which stays.
    """
    with suppress(OSError):
        own = own_directory()
        if _is_own_directory(own):
            for name in os.listdir(own):
                path = os.path.join(own, name)
                if path != used and _is_own_directory(path) and _newest_write(path) < wall_time() - KEPT_S:
                    shutil.rmtree(path, ignore_errors=True)


def is_in_memory(path: str) -> bool:
    """Return True if files below *path* are in the memory of the machine, as on tmpfs."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    with suppress(OSError), open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, file_system = line.partition(" - ")
            if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return file_system.split()[0] in _IN_MEMORY
    return False


def _is_own_directory(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _newest_write(path: str) -> float:
    newest = os.lstat(path).st_mtime
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            with suppress(FileNotFoundError):
                newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    return newest
