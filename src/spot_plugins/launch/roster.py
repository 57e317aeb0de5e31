"""
The roster: a folder in which each rank of a machine records its process id, for the ``spot run`` that started it.

``spot run`` needs it because a launcher in between may not forward a signal, and may hide the exit codes of its ranks.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..machine.threads import NoThreadError, start_thread

logger = logging.getLogger(__name__)

HANG_S: Final = 2.0
"""Longest wait in seconds for the disk of the folder. A process that leaves has no time for more."""

VARIABLE: Final = "SPOT_ROSTER"
"""Variable with the path of the folder. Only ``spot run`` sets it."""

GRACE_VARIABLE: Final = "SPOT_RUN_GRACE_SECONDS"
"""Variable with the seconds from a signal until ``spot run`` kills. Only ``spot run`` sets it."""

_RANK: Final = "rank-"
_LEFT: Final = "left-"
_MACHINE_ENDS: Final = "machine-ends-"


def join() -> None:
    """Record that this process is a rank, which saves and leaves after a SIGTERM. No effect without ``spot run``."""
    _write([_RANK], "a signal to spot run may not reach this process")


def leave(*, machine_ends: bool = False) -> None:
    """
    Record that this rank leaves because of a notice.

    With *machine_ends* a notice source has told this rank that its machine will be taken.
    """
    kinds = [_MACHINE_ENDS, _LEFT] if machine_ends else [_LEFT]
    _write(kinds, "spot run may start its command again on this machine")


def ranks(folder: Path) -> set[int]:
    """Return the process ids of all ranks that have joined."""
    return {int(path.name.removeprefix(_RANK)) for path in folder.glob(f"{_RANK}*")}


def has_left(folder: Path) -> bool:
    """
    Return True if a rank has left because of a notice and no rank has joined since.

    A launcher that restarts may start ranks again. Then the end of the new ranks counts.
    """
    left = _newest(folder, _LEFT)
    return left > 0 and left >= _newest(folder, _RANK)


def machine_ends(folder: Path) -> bool:
    """Return True if a rank has left because its machine will be taken. A launcher may not know of that."""
    return any(folder.glob(f"{_MACHINE_ENDS}*"))


def clear(folder: Path) -> None:
    """Remove all records, before the ranks are started again."""
    for path in folder.iterdir():
        path.unlink()


def _newest(folder: Path, kind: str) -> int:
    return max((path.stat().st_mtime_ns for path in folder.glob(f"{kind}*")), default=0)


def _write(kinds: list[str], otherwise: str) -> None:
    """Make a file for each of *kinds*. A warning says *otherwise* if the disk hangs, which this does not wait for."""
    if not (folder := os.environ.get(VARIABLE)):
        return

    def write() -> None:
        with suppress(OSError):  # the folder is gone if spot run has ended
            for kind in kinds:
                Path(folder, f"{kind}{os.getpid()}").touch()

    try:
        thread = start_thread(threading.Thread(target=write, name="spot-roster", daemon=True))
    except NoThreadError:
        write()
        return
    # wait: HANG_S; a warning says what spot run does not know, and the process continues
    thread.join(HANG_S)
    if thread.is_alive():
        logger.warning(
            "the folder %s did not answer within %.0f s, so %s. Set TMPDIR to a directory on another disk, and start "
            "spot run again",
            folder,
            HANG_S,
            otherwise,
        )
