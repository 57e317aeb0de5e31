"""
A folder in which the ranks of a machine write down who they are, for ``spot run``, which started them.

A launcher in between may not pass on a signal, and may not say how its ranks have ended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "SPOT_ROSTER"
"""Names the folder. Set by ``spot run`` alone."""

GRACE_VARIABLE: Final = "SPOT_RUN_GRACE_SECONDS"
"""Seconds from a signal to ``spot run`` until it kills. Set by it alone, whatever grace the training is told of."""

_RANK: Final = "rank-"
_LEFT: Final = "left-"


def join() -> None:
    """Write down that this process is a rank, which a SIGTERM makes save and leave. Nothing without ``spot run``."""
    _write(_RANK)


def leave() -> None:
    """Write down that this rank leaves because of a notice."""
    _write(_LEFT)


def ranks(folder: Path) -> set[int]:
    """Return the process ids of all that have joined."""
    return {int(path.name.removeprefix(_RANK)) for path in folder.glob(f"{_RANK}*")}


def has_left(folder: Path) -> bool:
    """
    Return whether a rank has left because of a notice, and none has joined since.

    A launcher with restarts of its own may start ranks again, and their end is the one that counts.
    """
    left = _newest(folder, _LEFT)
    return left > 0 and left >= _newest(folder, _RANK)


def clear(folder: Path) -> None:
    """Forget all, before the ranks are started again."""
    for path in folder.iterdir():
        path.unlink()


def _newest(folder: Path, kind: str) -> int:
    return max((path.stat().st_mtime_ns for path in folder.glob(f"{kind}*")), default=0)


def _write(kind: str) -> None:
    if folder := os.environ.get(VARIABLE):
        with suppress(OSError):  # the folder is gone with the one who made it
            Path(folder, f"{kind}{os.getpid()}").touch()
