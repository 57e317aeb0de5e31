"""Host memory that the pusher process reads while training continues."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

_NO_MEMFD: Final = (errno.ENOSYS, errno.EPERM)  # old sandboxes and seccomp profiles of containers
_MEMORY_DISK: Final = "/dev/shm"
_FOR_ALL_DEVICES: Final = 1  # cudaHostRegisterPortable
_FAULTED_AT_ONCE: Final = 1024**2  # short enough for the interpreter's lock to come free in between


class SharedBuffer:
    """
    *num_bytes* of shared memory, faulted in when it is made.

    Copying into fresh pages takes many times as long as copying into present ones. So all pages are made present here,
    and the buffer is used again and again. It is a memfd: the small ``/dev/shm`` of a container does not limit it, and
    it is gone when the last process that maps it has ended. If CUDA is in use it is pinned, so that a device copies
    into it on its own.
    """

    def __init__(self, number: int, num_bytes: int) -> None:
        """
        Make the buffer.

        Raises:
            OSError: The system has no memory or no descriptor for it, or allows none.
        """
        self.number = number
        """Name of the buffer between trainer and pusher. One session never uses a number twice."""
        self.num_bytes = num_bytes
        self.fd = _open_memory(f"spot-{number}", num_bytes)
        try:
            self._map = mmap.mmap(self.fd, num_bytes)
        except BaseException:
            os.close(self.fd)
            raise
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        """The memory as a tensor of shape ``(num_bytes,)``."""
        self.address = self.bytes.data_ptr()
        # Not MAP_POPULATE: until it has ended, no thread of this process could map memory, nor run Python.
        for start in range(0, num_bytes, _FAULTED_AT_ONCE):
            ctypes.memset(self.address + start, 0, min(_FAULTED_AT_ONCE, num_bytes - start))
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._is_pinned = torch.cuda.is_initialized() and self._pin()  # type: ignore[no-untyped-call]

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream for copies from a CUDA device. Training never uses it."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    def close(self) -> None:
        """Close the memory. The pusher keeps its own mapping. The tensor must not be used any more."""
        if self._is_pinned:
            _cudart().cudaHostUnregister(self.address)
        os.close(self.fd)
        del self.bytes, self._map

    def _pin(self) -> bool:
        failure = int(_cudart().cudaHostRegister(self.address, self.num_bytes, _FOR_ALL_DEVICES))
        if failure:
            logger.warning("host memory for saves cannot be pinned (CUDA error %s), so copies are slower", failure)
        return not failure


def _open_memory(name: str, num_bytes: int) -> int:
    """Return the descriptor of *num_bytes* of memory that no path names."""
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


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
