"""The shared file reaches each pusher process once, and a process is replaced for the file alone once after a save."""

from __future__ import annotations

import threading

from spot_plugins.push import SharedFile
from spot_plugins.push.file_way import FileWay


class Process:
    """Stands for a pusher process that takes every message."""

    def __init__(self):
        self.sent = []

    def send(self, message, fd):
        self.sent.append((message, fd))


def test_each_process_gets_the_file_once(tmp_path):
    """A process that starts because of the file has got it already, and a later one gets it again."""
    file = SharedFile(str(tmp_path / "file"), 100)
    first, second = Process(), Process()

    def reach():
        way.send_to(first)
        return first

    way = FileWay(threading.Lock(), reach)
    way.send_to(first)
    assert first.sent == [], "there is none yet"
    way.share(file)
    way.send_to(second)
    assert first.sent == second.sent == [({"file": file.path, "num_bytes": 100}, file.fd)]


def test_a_process_is_replaced_for_the_file_once_after_each_save(tmp_path):
    """The file may be why processes die."""
    way = FileWay(threading.Lock(), Process)
    assert not way.needs_another(), "there is no file"
    way.share(SharedFile(str(tmp_path / "file"), 100))
    for _ in range(2):
        way.saved()
        assert [way.needs_another() for _ in range(3)] == [True, False, False]
    way.saved()
    way.close()
    assert not way.needs_another()
