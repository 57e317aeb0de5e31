"""A small file on the local disk that the training process writes as memory, and the pusher process as a file."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..errors import StoreError
from ..store import LocalDisk
from .shared_memory import open_file, open_memory

PERIOD_S: Final = 1.0
"""Time from one look at the memory to the next."""
CLOSE_S: Final = 5.0
"""Longest wait for the last write when the pusher process ends."""

_PAGE: Final = mmap.PAGESIZE


class SharedFile:
    """
    The bytes of a file, in memory that training writes without a call of the system.

    The memory survives the training process, because the pusher process has it too. It is given back by whoever of them
    drops it last.

    Attributes:
        path: Path of the file.
        memory: The bytes, zeros at first.
        fd: Descriptor of the memory.
    """

    def __init__(self, path: str, num_bytes: int, memory_path: str | None = None) -> None:
        """
        Make the memory. The disk is not used, unless *memory_path* is given.

        Args:
            path: Path of the file.
            num_bytes: Size of the file.
            memory_path: Path of a file that is the memory, so that another program can read each change at once.

        Raises:
            OSError: The system has no memory or no descriptor for it, or allows none.
        """
        self.path = path
        self.fd = open_memory("file", num_bytes) if memory_path is None else open_file(memory_path, num_bytes)
        # Not closed by a method: another thread may be sending the descriptor. Not at the exit, for the same reason.
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.memory = mmap.mmap(self.fd, num_bytes)
        self.memory[:] = bytes(num_bytes)  # the machine gives the memory now, and not in a step of the training


class FileWriter:
    """
    Writes the changes of a :class:`SharedFile` to the disk, every second and at the end. Runs in the pusher process.

    The file is not forced to disk. A disk that hangs holds up the thread of this object alone.

    Args:
        on_failure: Called with the reason if the disk does not take the file, once.
    """

    def __init__(self, on_failure: Callable[[str], None] = lambda reason: None) -> None:
        self._on_failure = on_failure
        self._file: int | None = None
        self._written = b""
        self._has_failed = False
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, path: str, fd: int, num_bytes: int) -> None:
        """
        Start to keep a file on the disk. Returns at once.

        Args:
            path: Path of the file. A file that is there is replaced.
            fd: Descriptor of the memory. It is closed here.
            num_bytes: Size of the memory.
        """
        memory = mmap.mmap(fd, num_bytes, prot=mmap.PROT_READ)
        os.close(fd)
        self._thread = threading.Thread(target=self._run, args=(path, memory), name="spot-file", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let the bytes be written for the last time, because training has ended. Returns at once."""
        self._ends.set()

    def close(self) -> None:
        """Wait for the last write, which :meth:`end` has asked for."""
        if self._thread is not None:
            # wait: CLOSE_S; the changes of the last second are lost, and the process ends
            self._thread.join(CLOSE_S)

    def _run(self, path: str, memory: mmap.mmap) -> None:
        disk = LocalDisk(os.path.dirname(path))
        self._written = bytes(len(memory))
        is_last = False
        while not is_last:
            is_last = self._ends.is_set()
            if (new := memory[:]) != self._written:
                self._update(disk, path, new)
            # wait: PERIOD_S; it looks for changes again
            self._ends.wait(PERIOD_S)

    def _update(self, disk: LocalDisk, path: str, new: bytes) -> None:
        try:
            disk.do(lambda: self._write(path, new))
            self._written = new
        except (OSError, StoreError) as error:
            if not self._has_failed:
                self._has_failed = True
                self._on_failure(str(error))

    def _write(self, path: str, new: bytes) -> None:
        if self._file is None:
            self._file = _create(path)
        for start in range(0, len(new), _PAGE):
            page = new[start : start + _PAGE]
            if page != self._written[start : start + _PAGE] and os.pwrite(self._file, page, start) < len(page):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _create(path: str) -> int:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
