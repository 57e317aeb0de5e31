"""
Python imports this by its name before anything else. It gives the process, a pusher, a sick disk.

Where this folder is on the module path, each fsync and each ``os.pwrite`` below the directory ``SICK_DIR`` opens the
FIFO ``SICK_GATE``, and so hangs in the kernel until somebody has it open for writing. The same holds for each open of a
file below ``TMPDIR``, if ``SICK_TMP`` is set. Used by test_sick_disk.py.
"""

from __future__ import annotations

import os
import sys

directory, gate = os.environ["SICK_DIR"], os.environ["SICK_GATE"]
fsync, pwrite = os.fsync, os.pwrite


def hang(file: int) -> None:
    if os.readlink(f"/proc/self/fd/{file}").startswith(directory):
        os.close(os.open(gate, os.O_RDONLY))


def slow_fsync(file: int) -> None:
    hang(file)
    fsync(file)


def slow_pwrite(file: int, data: bytes, offset: int) -> int:
    hang(file)
    return pwrite(file, data, offset)


os.fsync, os.pwrite = slow_fsync, slow_pwrite


def slow_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and str(arguments[0]).startswith(os.environ["TMPDIR"]):
        os.close(os.open(gate, os.O_RDONLY))


if os.environ.get("SICK_TMP"):
    sys.addaudithook(slow_open)
