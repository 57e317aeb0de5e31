"""Host memory that the pusher process reads while the training process goes on."""

from __future__ import annotations

import mmap
import os

import torch


class SharedBuffer:
    """
    *num_bytes* of shared memory, faulted in at once.

    Fresh pages cost eight times what copying into present ones does, so they are made present here and
    the buffer is used again and again. It is a memfd: a container's small ``/dev/shm`` does not limit it,
    and it is gone when the last process that maps it is.
    """

    def __init__(self, number: int, num_bytes: int) -> None:
        self.number = number
        """Name of the buffer between trainer and pusher; never used twice by one session."""
        self.num_bytes = num_bytes
        self.fd = os.memfd_create(f"spot-{number}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, num_bytes)
            self._map = mmap.mmap(self.fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self.fd)
            raise
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        """The memory as a tensor of shape ``(num_bytes,)``."""

    def close(self) -> None:
        """Let go of the memory; the pusher keeps its own mapping. The tensor must not be used any more."""
        os.close(self.fd)
        del self.bytes, self._map
