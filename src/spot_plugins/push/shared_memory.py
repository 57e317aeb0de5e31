"""Memory that the training process shares with the pusher process."""

from __future__ import annotations

import errno
import os
from typing import Final

_NO_MEMFD: Final = (errno.ENOSYS, errno.EPERM)  # old sandboxes and seccomp profiles of containers
_MEMORY_DISK: Final = "/dev/shm"


def open_memory(name: str, num_bytes: int) -> int:
    """
    Return the descriptor of *num_bytes* of memory, which no path names.

    It is gone when the last process that has it has ended.

    Raises:
        OSError: The system has no memory or no descriptor for it, or allows none.
    """
    is_memfd = True
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError as error:
        if error.errno not in _NO_MEMFD:
            raise
        is_memfd = False
        fd = os.open(_MEMORY_DISK, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode=0o600)
    try:
        if is_memfd:
            os.ftruncate(fd, num_bytes)
        else:
            os.posix_fallocate(fd, 0, num_bytes)  # writing to a disk that turns out to be full would end the process
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(path: str, num_bytes: int) -> int:
    """
    Return the descriptor of a new file of *num_bytes*, which other programs can read. Its folder is made.

    Raises:
        OSError: The disk does not take it.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, num_bytes)  # a write to memory that a full disk does not take would end the process
    except BaseException:
        os.close(fd)
        raise
    return fd
