"""
Python imports this by its name before anything else. It kills the process, a pusher, at one of its writes.

Where this folder is on the module path, the process gets SIGKILL before write number ``KILL_AT``, counted from 0, to
any directory, the proof of the store left out; if ``KILL_AFTER`` is set, right after that write. It makes the file
``KILLED`` then. If ``KILL_ONCE`` is set, only the process that finds no such file is killed. Used by test_dying.py.
"""

from __future__ import annotations

import os
import signal
import threading

from spot_plugins.store import LocalStore

left = int(os.environ["KILL_AT"])
lock = threading.Lock()


def die():
    try:
        open(os.environ["KILLED"], "x").close()
    except FileExistsError:
        if "KILL_ONCE" in os.environ:
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
