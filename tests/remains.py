"""Remains of a drill after its processes should be gone: other processes, zombies, shared memory."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path


class Remains:
    """Knows the processes of one drill by a mark in their environment, or by the session they were forked into."""

    def __init__(self):
        self.environment = {"SPOT_DRILL": uuid.uuid4().hex}
        """For all processes of the drill; their children inherit it, pushers too, whoever their parent is by then."""
        self.sessions = set()
        """Process ids of forked session leaders, which have the environment of the server that forked them."""
        self._segments = set(os.listdir("/dev/shm"))

    def processes(self):
        """Return ids and command lines of all that is still there, zombies of a session included."""
        mark = f"SPOT_DRILL={self.environment['SPOT_DRILL']}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
                    if session in self.sessions or mark in (folder / "environ").read_bytes():
                        found.append((int(folder.name), (folder / "cmdline").read_bytes()))
                except OSError:
                    continue
        return found

    def segments(self):
        """Return what is new in /dev/shm and whose maker, by the process id in its name, is gone."""
        new = set(os.listdir("/dev/shm")) - self._segments
        makers = {name: next(filter(str.isdigit, name.split("_")), None) for name in new}
        return [name for name, maker in makers.items() if maker is None or not Path(f"/proc/{maker}").exists()]

    def assert_nothing(self, within_s):
        """Wait, for *within_s* at most, until nothing is there any more."""
        deadline = time.monotonic() + within_s
        while (found := (self.processes(), self.segments())) != ([], []):
            assert time.monotonic() < deadline, f"still there: {found}"
            time.sleep(0.005)

    def kill(self):
        """End what is there; for a drill that failed."""
        for pid, _ in self.processes():
            os.kill(pid, signal.SIGKILL)
