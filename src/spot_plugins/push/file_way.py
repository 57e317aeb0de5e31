"""The way of a shared file from the trainer to its pusher process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from .process import PusherProcess
from .shared_file import SharedFile


class FileWay:
    """
    Gives one shared file to the pusher process, and to each later one.

    Args:
        sending: The lock of whoever sends to the process.
        reach: Returns the process, a fresh one if none runs. Called with the lock held.
    """

    def __init__(self, sending: threading.Lock, reach: Callable[[], PusherProcess]) -> None:
        self._sending = sending
        self._reach = reach
        self._file: SharedFile | None = None
        self._holder: PusherProcess | None = None
        self._may_replace = True

    def share(self, file: SharedFile) -> None:
        """Let the process keep *file* on the local disk from now on. Never waits for the disk."""
        with self._sending, suppress(OSError):  # the next process gets it
            self._file = file
            self.send_to(self._reach())

    def send_to(self, process: PusherProcess) -> None:
        """
        Send the file to *process*, unless it has it. Call with the lock held.

        Raises:
            OSError: The process has died, or is about to.
        """
        if (file := self._file) is not None and self._holder is not process:
            self._holder = process
            process.send({"file": file.path, "num_bytes": len(file.memory)}, file.fd)

    def close(self) -> None:
        """Let go of the file. A process that has it keeps it on the disk until it ends."""
        self._file = None

    def saved(self) -> None:
        """Allow another process, because a step is handed over. Call with the lock held."""
        self._may_replace = True

    def needs_another(self) -> bool:
        """
        Return whether a dead process is replaced for the file alone. Call with the lock held.

        That is once after each save. The file may be why processes die, or the machine may have no memory for one.
        """
        needs = self._file is not None and self._may_replace
        self._may_replace = False
        return needs
