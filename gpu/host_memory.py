"""Shared host memory as the buffers of a session have it: a memfd that is mapped, faulted in and registered."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor

import torch

POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, since Linux 5.14
PORTABLE = 1  # cudaHostRegisterPortable
_libc = ctypes.CDLL(None, use_errno=True)


class HostMemory:
    """*num_bytes* of a memfd, mapped and not faulted in."""

    def __init__(self, num_bytes):
        self.num_bytes = num_bytes
        self.fd = os.memfd_create("spot-gpu")
        os.ftruncate(self.fd, num_bytes)
        self._map = mmap.mmap(self.fd, num_bytes)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.address = self.bytes.data_ptr()

    def fault_in_by_memset(self, step=2**20):
        """Write zeros, 1 MiB at a time. Return the seconds."""
        started = time.perf_counter()
        for start in range(0, self.num_bytes, step):
            ctypes.memset(self.address + start, 0, min(step, self.num_bytes - start))
        return time.perf_counter() - started

    def fault_in_by_populate(self, num_threads=1, step=64 * 2**20):
        """Call ``madvise(MADV_POPULATE_WRITE)``, 64 MiB at a time. Return the seconds."""

        def populate(start):
            size = min(step, self.num_bytes - start)
            if _libc.madvise(ctypes.c_void_p(self.address + start), ctypes.c_size_t(size), POPULATE_WRITE):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))

        started = time.perf_counter()
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(populate, range(0, self.num_bytes, step)))
        return time.perf_counter() - started

    def register(self, start=0, num_bytes=None):
        """Register a part of the memory with CUDA. Return the error code, 0 for none."""
        size = num_bytes or self.num_bytes - start
        return int(torch.cuda.cudart().cudaHostRegister(self.address + start, size, PORTABLE))

    def unregister(self, start=0):
        """Unregister the part that begins at *start*. Return the error code."""
        return int(torch.cuda.cudart().cudaHostUnregister(self.address + start))

    def close(self):
        os.close(self.fd)
        del self.bytes, self._map


def copy_speed(source, target, repeats=4):
    """Return the bytes per second of copies from the device tensor *source* into the host tensor *target*."""
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        target.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return repeats * source.nbytes / (begin.elapsed_time(end) / 1e3)


def pinned_speed(num_bytes=2**30):
    """Return the bytes per second of copies from the device into torch's own pinned memory."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device="cuda")
    return copy_speed(source, torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True))
