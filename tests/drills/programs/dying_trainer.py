"""A trainer that saves a step and then dies in one of several ways. Run by test_pusher_process.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from hearing import pusher_pid, until
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession


def main(settings):
    """
    Open a session, write its pusher's id to FOLDER/pusher, wait for FOLDER/go, save step 1 and die.

    ``settings.death`` is ``kill``, ``group`` or ``error``, or ``worker``: killed while a forked child lives on.
    """
    folder, death = settings.path, settings.death
    session = SpotSession(SpotConfig(**settings.config))
    session.register("part", Holder(state_of(1)), replicated=("both",))
    session.resume()
    if death == "worker" and os.fork() == 0:
        (folder / "child").write_text(str(os.getpid()))
        until(lambda: (folder / "end").exists(), "the end of the test")
        os._exit(0)
    (folder / "pusher").write_text(str(pusher_pid(session)))
    until(lambda: (folder / "go").exists(), "the test says go")
    session.save(1)
    if death == "error":
        sys.exit("an error of the user's own")
    if death == "group":
        # what launchers and schedulers do: ask first, then kill, and always the whole group
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        subprocess.run(["kill", "-TERM", str(pusher_pid(session))], check=True)
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
