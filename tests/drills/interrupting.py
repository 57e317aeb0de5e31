"""
What happens to a rank at an exact place of its training. For the trainings of all hosts; their settings say what.

``at``, a place such as ``["backward", 11]``, and ``to``, a list of ``[rank, after_s]``: each of these ranks sends
itself ``signal`` (SIGTERM if not given) at that place, or so many seconds behind it. Nobody waits for it to be heard.
``slow``, a rank and a place: that rank stands there until it knows of a notice, and for a while more.
``freeze``, a place: every rank stops its pusher and itself there, until somebody lets both go on.

``["saving", 1]`` is the first periodic save, between staging and push. If it is ``at``, the pusher does nothing until
the rank knows of a notice, and for a while more.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from spot_plugins.events import Staged

MORE_S = 0.2


class Interruption:
    def __init__(self, settings, rank, session, tell):
        """*session* returns the rank's session; *tell* writes an event down."""
        self._settings = settings
        self._rank = rank
        self._session = session
        self._tell = tell
        self._num_saves = 0

    def hear(self, event):
        """Hear of an event of the session; some are places."""
        if isinstance(event, Staged) and event.trigger == "steps":
            self._num_saves += 1
            self.reach("saving", self._num_saves)

    def reach(self, *place):
        """Say that this rank is at *place*."""
        if list(place) == self._settings.get("freeze"):
            self._freeze()
        if list(place) == self._settings.get("at") and "to" in self._settings:
            if place[0] == "saving" and "signal" not in self._settings:
                self._hold_up_pusher()
            for rank, after_s in self._settings["to"]:
                if rank == self._rank:
                    self._send(after_s)
        if [self._rank, *place] == self._settings.get("slow"):
            self._await_notice()

    def _send(self, after_s):
        name = self._settings.get("signal", "SIGTERM")
        self._tell({"event": "Sent", "signal": name, "at": time.monotonic()})
        if after_s == 0:
            os.kill(os.getpid(), signal.Signals[name])
            return
        timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.Signals[name]))
        timer.daemon = True
        timer.start()

    def _hold_up_pusher(self):
        pusher = self._session()._pusher.pid
        os.kill(pusher, signal.SIGSTOP)

        def let_go():
            self._await_notice()
            os.kill(pusher, signal.SIGCONT)

        threading.Thread(target=let_go, daemon=True).start()

    def _await_notice(self):
        deadline = time.monotonic() + 30
        while self._session().notice is None:
            assert time.monotonic() < deadline, "no notice came"
            time.sleep(0.001)
        time.sleep(MORE_S)

    def _freeze(self):
        pids = [self._session()._pusher.pid, os.getpid()]
        self._tell({"event": "Frozen", "pids": pids})
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
