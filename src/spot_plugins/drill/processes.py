"""The processes of a training, which are known by the folder of the drill in their environment."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..launch.drilled import FOLDER_VARIABLE
from ..launch.supervisor import PUSHER, command_of

KILL_S: Final = 30.0
"""Longest wait in seconds for processes that have got a SIGKILL. One that hangs in the kernel may remain."""

_LOOK_S: Final = 0.02
_MAX_SHOWN: Final = 100


class Processes:
    """
    All processes whose environment names a folder: those of the command, whoever their parent is by now.

    Args:
        folder: The folder of a training, or that of a whole drill.
    """

    def __init__(self, folder: Path) -> None:
        self._mark = f"{FOLDER_VARIABLE}={folder}".encode()

    def pids(self) -> set[int]:
        """Return the ids of the processes that run."""
        found = set()
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with suppress(OSError):
                    if self._mark in (path / "environ").read_bytes():
                        found.add(int(path.name))
        return found - {os.getpid()}

    def signal(self, pids: Iterable[int], number: signal.Signals) -> None:
        """Send a signal to each of *pids* that still runs."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all of them, and those that they start meanwhile. Wait until they are gone."""
        deadline = time.monotonic() + KILL_S
        while (pids := self.pids()) and time.monotonic() < deadline:
            self.signal(pids, signal.SIGKILL)
            # wait: KILL_S in all; what hangs in the kernel remains
            time.sleep(_LOOK_S)


def clear(folder: Path, *, keeps_output: bool = False) -> None:
    """Kill what remains of the drill in *folder*, and remove the folder, or all of it but what the starts printed."""
    Processes(folder).kill()
    for path in folder.iterdir() if keeps_output else [folder]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def is_pusher(pid: int) -> bool:
    """Return whether a process is a pusher."""
    return PUSHER in command_of(pid)


def is_other(pid: int) -> bool:
    """Return whether a process runs that is no pusher. One that is just ending has no command line any more."""
    return PUSHER not in (words := command_of(pid)) and bool(words)


def described(pid: int) -> str:
    """Return id and command line of a process, for people."""
    words = command_of(pid).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    return f"process {pid} ({words[:_MAX_SHOWN]})"
