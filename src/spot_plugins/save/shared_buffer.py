"""Host memory that the pusher process reads while training continues."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import Final

import torch

from ..push import open_memory
from .devices import DEVICES, Device, Stream

PIECE_BYTES: Final = 256 * 1024**2  # a registration with the driver holds locks of the process: 0.05 to 0.2 s/GiB
STEP_BYTES: Final = 64 * 1024**2  # faulting in holds a lock of the process: about 1 s/GiB
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_FAULTED_AT_ONCE: Final = 1024**2  # short enough for the interpreter's lock to come free in between
_libc: Final = ctypes.CDLL(None, use_errno=True)


class SharedBuffer:
    """
    *num_bytes* of shared memory, faulted in when it is made.

    Copying into fresh pages takes many times as long as copying into present ones. So all pages are made present here,
    and the buffer is used again and again. It is a memfd: the small ``/dev/shm`` of a container does not limit it, and
    it is gone when the last process that maps it has ended. If a device with streams is in use it is pinned, in pieces
    of :data:`PIECE_BYTES`, so that the device copies into it on its own.

    It takes seconds to make and to close a large buffer. The copying thread does both.
    """

    def __init__(self, number: int, num_bytes: int, before_step: Callable[[int], None] = lambda _: None) -> None:
        """
        Make the buffer.

        Args:
            number: Name of the buffer between trainer and pusher. One session never uses a number twice.
            num_bytes: Its size.
            before_step: Called before each step with the bytes that are still to be taken. If it raises an exception,
                all memory is given back.

        Raises:
            OSError: The system has no memory or no descriptor for it, or allows none.
        """
        self.number = number
        self.num_bytes = num_bytes
        self.fd = open_memory(f"spot-{number}", num_bytes)
        try:
            self._map = mmap.mmap(self.fd, num_bytes)
        except BaseException:
            os.close(self.fd)
            raise
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        """The memory as a tensor of shape ``(num_bytes,)``."""
        self.address = self.bytes.data_ptr()
        self._streams: dict[torch.device, Stream] = {}
        self._pinned: dict[Device, list[int]] = {kind: [] for kind in DEVICES.values() if kind.is_used()}
        self.pin_error = 0
        """The error of a driver that has refused to pin the memory. Copies into it are correct, and waited for."""
        try:
            for start in range(0, num_bytes, PIECE_BYTES):
                stop = min(start + PIECE_BYTES, num_bytes)
                for first in range(start, stop, STEP_BYTES):
                    before_step(num_bytes - first)
                    _fault_in(self.address + first, min(STEP_BYTES, stop - first))
                self._pin(start, stop)
        except BaseException:
            self.close()
            raise

    def stream(self, device: torch.device) -> Stream:
        """Return the stream for copies from a device of :data:`.DEVICES`. Training never uses it."""
        if device not in self._streams:
            self._streams[device] = DEVICES[device.type].make_stream(device)
        return self._streams[device]

    def close(self, *, gives_back: bool = True) -> None:
        """
        Close the memory. The tensor must not be used any more.

        Args:
            gives_back: Free the memory, although a worker of a data loader that was forked meanwhile maps it. False if
                the pusher process maps it: any access would end that process, which frees the memory itself.
        """
        for kind in list(self._pinned):
            self._unpin(kind)
        del self.bytes, self._map
        if gives_back:
            os.ftruncate(self.fd, 0)
        os.close(self.fd)

    def _pin(self, start: int, stop: int) -> None:
        """Pin one piece. If the driver refuses, unpin the others, because a copy must not cross the edge."""
        for kind in list(self._pinned):
            if error := kind.pin(self.address + start, stop - start):
                self.pin_error = error
                kind.clear_error()
                self._unpin(kind)
            else:
                self._pinned[kind].append(self.address + start)

    def _unpin(self, kind: Device) -> None:
        for address in self._pinned.pop(kind):
            kind.unpin(address)


def _fault_in(address: int, num_bytes: int) -> None:
    """
    Make pages present.

    Raises:
        OSError: The system has no memory for them.
    """
    # Not MAP_POPULATE: until it has ended, no thread of this process could map memory, nor run Python.
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), _POPULATE_WRITE) == 0:
        return
    if (error := ctypes.get_errno()) != errno.EINVAL:
        raise OSError(error, os.strerror(error))
    for start in range(0, num_bytes, _FAULTED_AT_ONCE):  # this kernel is older
        ctypes.memset(address + start, 0, min(_FAULTED_AT_ONCE, num_bytes - start))
