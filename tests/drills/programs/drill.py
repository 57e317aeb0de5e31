"""
One rank of a training that is interrupted at an exact place, and what it writes down. For the trainings of all hosts.

The settings say what happens. ``at``, a place such as ``["backward", 11]``, and ``to``, a list of ``[rank, after_s]``:
each of these ranks sends itself ``signal`` (SIGTERM if not given) at that place, or so many seconds after it. It waits
for a notice only some places later, because the whole training may take less time than a notice takes to be known.
``slow``, a rank and a place: that rank stands there until it knows of a notice, and for a
while more. ``freeze``, a place: every rank stops its pusher and itself there, until somebody lets both continue.

``["saving", 1]`` is the first periodic save, between staging and push. If it is ``at``, the pusher does nothing until
the rank knows of a notice, and for a while more.

Files of the folder: every event is a line of ``events-RANK.jsonl``, what every batch saw one of ``trace-RANK.jsonl``.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict

from hearing import pusher_pid, until

from spot_plugins.events import Staged

MORE_S = 0.2
NUM_PLACES = 10
"""Places after a signal until it has to be known. They are about two steps."""


class Drill:
    def __init__(self, settings, rank, session):
        """*session* returns the rank's session once it has one."""
        self.settings = settings
        self.rank = rank
        self._session = session
        self._num_saves = 0
        self._num_places_left: int | None = None  # until this rank waits for the notice that it has sent itself

    def write(self, name, value):
        """Append a line to the file *name* of this rank."""
        with (self.settings.path / f"{name}-{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps(value) + "\n")

    def on_event(self, event):
        """Write down an event of the session; some are places."""
        self.write("events", {"event": type(event).__name__, **asdict(event)})
        if isinstance(event, Staged) and event.trigger == "steps":
            self._num_saves += 1
            self.reach("saving", self._num_saves)

    def reach(self, *place):
        """Say that this rank is at *place*."""
        settings = self.settings
        if self._num_places_left is not None:
            self._num_places_left -= 1
            if self._num_places_left == 0:
                self.await_notice()
        if list(place) == settings.freeze:
            self._freeze()
        if list(place) == settings.at and settings.to is not None:
            if place[0] == "saving" and settings.signal is None:
                self._hold_up_pusher()
            for rank, after_s in settings.to:
                if rank == self.rank:
                    self._send(after_s)
        if [self.rank, *place] == settings.slow:
            self._linger()

    def is_at_own_signal(self, *place):
        """Return whether all ranks get ``signal`` at *place*; it is the program that brings it about."""
        return list(place) == self.settings.at and self.settings.to is None

    def await_notice(self):
        """Wait until this rank knows of a notice, its own or another rank's."""
        until(lambda: self._session().notice is not None, "a notice comes")

    def _linger(self):
        self.await_notice()
        time.sleep(MORE_S)

    def _send(self, after_s):
        name = self.settings.signal or "SIGTERM"
        self.write("events", {"event": "Sent", "signal": name, "at": time.monotonic()})
        if name == "SIGTERM":
            self._num_places_left = NUM_PLACES
        if after_s == 0:
            os.kill(os.getpid(), signal.Signals[name])
            return
        timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.Signals[name]))
        timer.daemon = True
        timer.start()

    def _hold_up_pusher(self):
        pusher = pusher_pid(self._session())
        os.kill(pusher, signal.SIGSTOP)

        def let_go():
            self._linger()
            os.kill(pusher, signal.SIGCONT)

        threading.Thread(target=let_go, daemon=True).start()

    def _freeze(self):
        pids = [pusher_pid(self._session()), os.getpid()]
        self.write("events", {"event": "Frozen", "pids": pids})
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
