"""What a process and its children take from the machine: CPU seconds and memory."""

from __future__ import annotations

import resource
import threading

import psutil
import torch

TICK_S = 0.02


def own_cpu_s():
    """Return the CPU seconds of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def children_cpu_s():
    """Return the CPU seconds of all children so far, ended or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
            total += times.user + times.system
        except psutil.Error:  # it ended a moment ago
            continue
    return total


class MemoryPeak:
    """
    The most memory that this process and its children had within a ``with`` block, and its tensors on the device.

    The kernel's proportional set sizes are added up: a page that two of them share counts once, so does one of shared
    memory. To ask for them holds up whoever maps memory meanwhile, so nothing is timed while this runs.
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
