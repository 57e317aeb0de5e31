"""
Python imports this by its name before anything else. It gives the process, a pusher, a sick disk.

Where this folder is on the module path, each fsync below the directory ``SICK_DIR`` opens the FIFO ``SICK_GATE``, and
so hangs in the kernel until somebody has it open for writing. Used by test_sick_disk.py.
"""

from __future__ import annotations

import os

directory, gate = os.environ["SICK_DIR"], os.environ["SICK_GATE"]
fsync = os.fsync


def slow_fsync(file: int) -> None:
    if os.readlink(f"/proc/self/fd/{file}").startswith(directory):
        os.close(os.open(gate, os.O_RDONLY))
    fsync(file)


os.fsync = slow_fsync
