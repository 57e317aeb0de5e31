"""
Python imports this by its name before anything else. It kills the process, a pusher, at one of its writes.

Where this folder is on the module path, the process gets SIGKILL before write number ``KILL_AT``, counted from 0, to
any directory, the proof of the store left out; if ``KILL_AFTER`` is set, right after that write. If ``KILL_ONCE`` is
the name of a file, only the first process is killed, and makes that file. Used by test_dying.py.
"""

from __future__ import annotations

import os
import signal
import threading

from spot_plugins.store import LocalStore

left = int(os.environ["KILL_AT"])
once = os.environ.get("KILL_ONCE")
lock = threading.Lock()


def die():
    if once is not None:
        try:
            open(once, "x").close()
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)


def dying(write):
    def call(self, key, *args):
        global left
        if key.startswith("probe/"):
            return write(self, key, *args)
        with lock:
            left -= 1
            is_last = left == -1
        if is_last and "KILL_AFTER" not in os.environ:
            die()
        result = write(self, key, *args)
        if is_last:
            die()
        return result

    return call


LocalStore.put = dying(LocalStore.put)
LocalStore.delete = dying(LocalStore.delete)
