"""
Python imports this by its name before anything else. It kills the process, a pusher, at one of its writes.

Where this folder is on the module path, the process gets SIGKILL before write number ``KILL_AT``, counted from 0,
to any directory. Used by test_dying.py.
"""

from __future__ import annotations

import os
import signal
import threading

from spot_plugins.store import LocalStore

left = int(os.environ["KILL_AT"])
lock = threading.Lock()


def dying(write):
    def call(self, *args):
        global left
        with lock:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return write(self, *args)

    return call


LocalStore.put = dying(LocalStore.put)
LocalStore.delete = dying(LocalStore.delete)
