"""Host memory that the pusher process reads while training continues."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from typing import Final

import torch

from .devices import DEVICES, Device, Stream

logger = logging.getLogger(__name__)

_NO_MEMFD: Final = (errno.ENOSYS, errno.EPERM)  # old sandboxes and seccomp profiles of containers
_MEMORY_DISK: Final = "/dev/shm"
_FAULTED_AT_ONCE: Final = 1024**2  # short enough for the interpreter's lock to come free in between


class SharedBuffer:
    """
    *num_bytes* of shared memory, faulted in when it is made.

    Copying into fresh pages takes many times as long as copying into present ones. So all pages are made present here,
    and the buffer is used again and again. It is a memfd: the small ``/dev/shm`` of a container does not limit it, and
    it is gone when the last process that maps it has ended. If a device with streams is in use it is pinned, so that
    the device copies into it on its own.
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
        self._streams: dict[torch.device, Stream] = {}
        self._pinned_for = [kind for kind in DEVICES.values() if kind.is_used() and self._pin(kind)]

    def stream(self, device: torch.device) -> Stream:
        """Return the stream for copies from a device of :data:`.DEVICES`. Training never uses it."""
        if device not in self._streams:
            self._streams[device] = DEVICES[device.type].make_stream(device)
        return self._streams[device]

    def close(self) -> None:
        """Close the memory. The pusher keeps its own mapping. The tensor must not be used any more."""
        for kind in self._pinned_for:
            kind.unpin(self.address)
        os.close(self.fd)
        del self.bytes, self._map

    def _pin(self, kind: Device) -> bool:
        if failure := kind.pin(self.address, self.num_bytes):
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
