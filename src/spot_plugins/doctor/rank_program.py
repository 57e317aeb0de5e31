"""
The program that :mod:`.launch_test` lets a launcher start, in place of a training: it waits for a notice.

It writes into the folder of its first argument, in files with its process id: ``began-PID`` with what it knows of its
rank, ``heard-PID`` with the name of the signal, and ``left-PID`` right before it leaves by itself. It holds a lock on
the first of them as long as it lives. Its second argument is the grace period: it leaves shortly before the end of
that, with the code of a training that was preempted. It leaves at once when the folder is gone, or when nobody holds
the lock on ``GUARD`` in it any more, because the process that rehearses has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final, TextIO

GUARD: Final = "guard"
LOOK_S: Final = 0.2
LONGEST_S: Final = 600.0
"""Seconds after which the program leaves in any case."""


def main() -> None:
    """Wait for a notice, then for the end of the grace period."""
    folder, grace_s = Path(sys.argv[1]), float(sys.argv[2])
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # they are read by sigtimedwait, so no handler is needed
    # The folder of this file must hide no module of Python's.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    from spot_plugins.config import from_environment
    from spot_plugins.errors import Preempted
    from spot_plugins.launch import roster
    from spot_plugins.notices.surroundings import look_around

    roster.join()
    around = look_around(from_environment(url=str(folder), every_steps=1, grace_seconds=grace_s))
    facts = {"world_size": int(os.environ.get("WORLD_SIZE", "1")), "advice": list(around.advice)}
    began = _write(folder, "began", json.dumps(facts))
    deadline = time.monotonic() + LONGEST_S
    has_heard = False
    while time.monotonic() < deadline and _is_rehearsed(folder):
        # wait: LOOK_S; it looks at the time, and whether the rehearsal goes on
        heard = signal.sigtimedwait(signals, LOOK_S)
        if heard is not None and not has_heard:
            has_heard = True
            deadline = time.monotonic() + max(grace_s - 1, grace_s / 2)
            roster.leave()
            _write(folder, "heard", signal.Signals(heard.si_signo).name).close()
    if folder.exists():
        _write(folder, "left", "").close()
    began.close()
    sys.exit(Preempted.EXIT_CODE if has_heard else 1)


def _is_rehearsed(folder: Path) -> bool:
    """Return whether the process that rehearses still runs, and still wants this one."""
    try:
        with (folder / GUARD).open() as file:
            # wait: none; a lock that is held is an error
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _write(folder: Path, kind: str, text: str) -> TextIO:
    """Write a whole file, and return it open and locked."""
    unfinished = folder / f"unfinished-{os.getpid()}"
    file = unfinished.open("w")
    # wait: none; no other process knows the file yet
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(text)
    file.flush()
    unfinished.rename(folder / f"{kind}-{os.getpid()}")
    return file


if __name__ == "__main__":
    main()
