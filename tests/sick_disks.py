"""A local disk that hangs in this process, in the kernel: no exception, no return, until somebody lets it go."""

from __future__ import annotations

import os
import sys
import threading

from spot_plugins.store import local_disk

HANG_S = local_disk.HANG_S
_ACTS = frozenset(
    {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.utime"}
)
_sick = []


class SickDisk:
    """
    A ``with`` block in which files below *directory* cannot be reached.

    Each act on a path that has *part* in it, from number *first* on, opens a FIFO that nobody writes to. So does each
    ``os.pwrite`` to a file that is open. The end of the block lets them go, and waits for their threads.

    With *is_given_up* the limit of the training process is over as soon as something hangs, and not before. So a disk
    that is healthy and slow is never given up.
    """

    def __init__(self, directory, *, first=0, part="", is_given_up=True):
        self._directory, self._first, self._part = str(directory), first, part
        self._is_given_up = is_given_up
        self._gate = f"{directory}-gate"
        self._lock = threading.Lock()
        self._num_acts = 0
        self._threads = []
        self.hangs = threading.Event()

    def __enter__(self):
        os.mkfifo(self._gate)
        _sick.append(self)
        return self

    def __exit__(self, *_):
        self.let_go()
        for thread in self._threads:
            thread.join(300)
            assert not thread.is_alive()
        os.close(self._let_go)
        os.unlink(self._gate)
        local_disk.HANG_S = HANG_S

    def let_go(self):
        """Let everything that hangs return, and nothing hang any more."""
        if self in _sick:
            _sick.remove(self)
            self._let_go = os.open(self._gate, os.O_RDWR)

    def on_act(self, path):
        """Hang if *path* is on the disk."""
        if path == self._gate or not path.startswith(self._directory) or self._part not in path:
            return
        with self._lock:
            self._num_acts += 1
            if self._num_acts <= self._first:
                return
            self._threads.append(threading.current_thread())
        if self._is_given_up:
            local_disk.HANG_S = 0.0
        self.hangs.set()
        os.close(os.open(self._gate, os.O_RDONLY))


def _on_act(event, arguments):
    if _sick and event in _ACTS and isinstance(arguments[0], str):
        for each in tuple(_sick):
            each.on_act(arguments[0])


sys.addaudithook(_on_act)  # it cannot be removed again


def _pwrite(file, data, offset):
    if _sick:
        path = os.readlink(f"/proc/self/fd/{file}")
        for each in tuple(_sick):
            each.on_act(path)
    return pwrite(file, data, offset)


pwrite, os.pwrite = os.pwrite, _pwrite
