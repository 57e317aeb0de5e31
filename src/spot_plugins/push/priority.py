"""Priority of the pusher: low, so that training keeps the machine, until the machine will be taken from both."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

NICENESS: Final = 10  # measured: SCHED_IDLE makes a push six times slower, 10 hardly does


class Priority:
    """
    The priority of the threads that hash, write and put. Linux derives the priority of their reads and writes from it.

    Each thread lowers its own priority, because only a privileged process may raise it again. A thread starts with the
    priority of the thread that starts it, so those of the next push can have the normal one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hurries = False

    def lower(self) -> None:
        """Lower the priority of the calling thread, unless there is a hurry."""
        with self._lock:  # else a hurry that comes in between would not raise it
            if not self._hurries:
                self.lower_always()

    def lower_always(self) -> None:
        """Lower the priority of the calling thread. For writes to the disk, which come after the store in a hurry."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

    def hurry(self) -> None:
        """Lower no priority from now on, and raise the lowered ones if this process may."""
        with self._lock:
            self._hurries = True
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError):  # not allowed, or the thread has ended
                    os.setpriority(os.PRIO_PROCESS, int(thread), 0)
