"""Waiting: for events of a session, for what its pusher does, for files and for the end of processes."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from spot_plugins.push import process
from spot_plugins.session import SpotSession

DEADLINE_S = 300.0


class Heard:
    """A hook that remembers every event. ``heard.wait(Committed, step=3)`` returns the first such event, or fails."""

    def __init__(self):
        self.events = []
        self._changed = threading.Condition()

    def __call__(self, event):
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def of(self, kind, **fields):
        """The events of *kind* that have these values, in the order in which they came."""
        with self._changed:
            return [
                event
                for event in self.events
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
            ]

    def wait(self, kind, **fields):
        """Wait for the first such event and return it."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.of(kind, **fields), DEADLINE_S)
        assert came, f"no {kind.__name__}{fields} among {self.events[-20:]}"
        return came[0]


def until(condition, what, process=None):
    """
    Wait until *condition* returns something true, and return it.

    Fails after a while, because *what* did not happen, or as soon as *process*, which does it, has ended.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        assert process is None or process.poll() is None, f"ended with {process.returncode} before this: {what}"
        time.sleep(0.005)
    return result


def until_notice():
    """Wait until the session of this process knows of a notice, whichever host it belongs to."""
    (session,) = (each for each in gc.get_objects() if type(each) is SpotSession)
    until(lambda: session.notice is not None, "the notice is known")


def remove(folder):
    """Remove *folder*, though a pusher may write there. The pusher of a session that has ended never does so again."""
    until_pushers_end()

    def is_removed():
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(is_removed, f"{folder} is removed")


# The six below look inside a session, for nothing that it says tells what its pusher does. Nothing else should.


def until_pushers_end():
    """Wait until the pusher of every session of this process that has ended has ended too."""
    used = {pusher.pid for pusher in process._processes if not pusher._is_closed}
    ended = [pusher for pusher in process._started if pusher.pid not in used]
    until(lambda: all(pusher.poll() is not None for pusher in ended), "the pushers of ended sessions end")


def pusher_pid(session):
    """Return the process id of the pusher of *session*."""
    return session._opened.pusher.pid


def until_not_busy(session):
    """Wait until the pusher of *session* has no step that the store takes; one that only fails does not count."""
    until(lambda: not session._opened.pusher.ledger.is_busy, "the pusher is not busy")


def until_idle(session):
    """Wait until the pusher of *session* has nothing in hand, so that a save that is due is not deferred."""
    until(lambda: not session._opened.pusher.ledger.num_held, "the pusher has nothing in hand")


def until_end_known(session, pid):
    """Wait until *session* knows that its pusher *pid*, which was killed, has ended. Another one may run by then."""
    until(lambda: pusher_pid(session) != pid, "the end of the pusher is known")


def next_pusher(session, pid):
    """Wait until the pusher process *pid* of *session* is replaced. Return the id of the new one."""
    return until(lambda: pusher_pid(session) not in (None, pid) and pusher_pid(session), "another pusher process runs")


def kill_pusher_and_successor(session):
    """
    Kill the pusher process of *session*, and the one that takes its place before that one has done anything.

    Return the id of the latter. It stands still from its first moment, so that the test cannot be too late.
    """
    first = pusher_pid(session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "drills" / "standing"))
        os.kill(first, signal.SIGKILL)
        second = next_pusher(session, first)
    os.kill(second, signal.SIGKILL)
    return second


def said(file):
    """Return the text of *file*, or nothing if it is not there yet."""
    return file.read_text() if file.exists() else ""


def is_zombie(pid):
    """Return whether the process has ended; whoever adopted it may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def until_gone(pid):
    """Wait until there is no process *pid*, not even a zombie."""
    until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} is gone")
