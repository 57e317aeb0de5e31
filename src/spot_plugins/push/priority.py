"""How much of the machine the pusher takes from training: little, until the machine will be taken from both."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

NICENESS: Final = 10  # measured: SCHED_IDLE makes a push six times slower, 10 hardly does


class Priority:
    """
    The priority of the threads that hash, write and put. Linux derives that of their reads and writes from it.

    Each thread lowers its own, for only a privileged process may raise it again, and threads begin with that of
    the thread that starts them: those of the next push then have the normal one.
    """

    def __init__(self) -> None:
        self._hurries = threading.Event()

    def lower(self) -> None:
        """Lower that of the calling thread, unless there is a hurry."""
        if not self._hurries.is_set():
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

    def hurry(self) -> None:
        """Lower none from now on, and raise those that were lowered if that is allowed."""
        self._hurries.set()
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # no right to, or it has ended
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
