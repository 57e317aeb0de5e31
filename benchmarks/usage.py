"""CPU seconds and memory of a process and its children."""

from __future__ import annotations

import resource
import threading

import psutil
import torch

TICK_S = 0.02


def own_cpu_s():
    """Return the CPU seconds of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def children_cpu_s():
    """Return the CPU seconds of all children so far, including those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
            total += times.user + times.system
        except psutil.Error:  # the process has ended meanwhile
            continue
    return total


class MemoryPeak:
    """
    The peak memory of this process and its children within a ``with`` block, and the peak on the device.

    The sum of the kernel's proportional set sizes counts a shared page once. Reading them blocks processes that map
    memory meanwhile, so nothing is timed while this runs.
    """

    def __enter__(self):
        self.num_bytes = 0
        self.num_device_bytes = 0
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join()
        self.num_bytes = max(self.num_bytes, _pss())
        if torch.cuda.is_initialized():
            self.num_device_bytes = torch.cuda.max_memory_allocated()

    def _sample(self):
        while not self._stop.wait(TICK_S):
            self.num_bytes = max(self.num_bytes, _pss())


def _pss():
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
