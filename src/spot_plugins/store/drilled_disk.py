"""
The faults of a disk that ``spot drill`` makes in the store of a directory, where the kernel would make them.

No user may fill a disk that others use, and only root can make one read-only or slow. So a training of a drill looks,
before each write below the folder of the drill, for a file that names a fault. Outside of a drill there is no variable
and no look.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import Final

VARIABLE: Final = "SPOT_PLUGINS_DRILL_DISK"
"""Variable with the path of the file that names the fault. Only ``spot drill`` sets it."""

FULL: Final = "full"
READ_ONLY: Final = "read-only"
SLOW: Final = "slow"

ERRORS: Final = {FULL: errno.ENOSPC, READ_ONLY: errno.EROFS}
"""The errors of the kernel."""

SLOW_S: Final = 2.0
"""Time that a slow disk takes for each object, besides its own."""


def hit_file(path: str) -> str:
    """Return the file that gets a line with the key of each object that the fault in the file *path* has hit."""
    return f"{path}-hit"


def before_write(root: str, key: str) -> None:
    """
    Fail or wait, if the disk of the directory *root* has a fault. *key* is the object that is put.

    Raises:
        OSError: The disk is full or read-only.
    """
    if (fault := _fault(root)) is None:
        return
    path, name = fault
    with suppress(OSError), open(hit_file(path), "a", encoding="utf-8") as file:
        file.write(f"{key}\n")
    if name == SLOW:
        # wait: SLOW_S; the object is written
        time.sleep(SLOW_S)
    else:
        raise OSError(ERRORS[name], os.strerror(ERRORS[name]))


def before_delete(root: str) -> None:
    """
    Fail if the disk of the directory *root* is read-only. A full one lets files be deleted.

    Raises:
        OSError: It is.
    """
    if (fault := _fault(root)) is not None and fault[1] == READ_ONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _fault(root: str) -> tuple[str, str] | None:
    """Return the file of the drill and the fault in it. None if there is no drill, no fault, or another directory."""
    path = os.environ.get(VARIABLE)
    if path is None or not root.startswith(f"{os.path.dirname(path)}/"):
        return None
    with suppress(OSError), open(path, encoding="utf-8") as file:
        name = file.read()
        if name in (FULL, READ_ONLY, SLOW):
            return path, name
    return None
