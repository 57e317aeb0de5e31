"""The start of a thread on a machine or in a container that may have no room for another one."""

from __future__ import annotations

import threading


class NoThreadError(OSError):
    """The machine has no room for another thread."""


def start_thread(thread: threading.Thread) -> threading.Thread:
    """
    Start *thread* and return it.

    Raises:
        NoThreadError: The machine has no room for it.
    """
    try:
        thread.start()
    except RuntimeError as error:
        told = f"no thread {thread.name} ({error}). Allow this machine or container more processes and threads"
        raise NoThreadError(told) from error
    return thread
