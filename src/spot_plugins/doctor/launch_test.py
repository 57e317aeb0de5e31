"""
Findings about a launcher, by a rehearsal: it starts :mod:`.rank_program`, gets a SIGTERM, and is watched.

What is measured is what a training would see: which processes get the notice, how long they may work on, and which exit
code a scheduler gets in the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, Preempted
from . import rank_program
from .findings import Finding
from .wording import quoted, seconds

BEGIN_S: Final = 120.0
"""Seconds for a launcher to start its processes. Some import torch first, and ask other machines."""
HEAR_S: Final = 15.0
LATE_S: Final = 5.0
"""Seconds in which a process may still hear of a notice after its launcher has ended."""
END_S: Final = 30.0
LOOK_S: Final = 0.05

NOT_REHEARSED: Final = Finding(
    "launcher",
    "unknown",
    "it was not rehearsed",
    "name it with its options, without the program: spot doctor URL -- torchrun --nproc-per-node 8",
)


def look_at_launcher(command: Sequence[str], grace_s: float) -> Iterator[Finding]:
    """
    Start *command* with a program that waits for a notice, send it a SIGTERM, and say what came of it.

    Args:
        command: A launcher and its options, such as ``torchrun --nproc-per-node 2``. It must not name a program.
        grace_s: The grace period in seconds. The rehearsal takes as long.

    Raises:
        ConfigError: *command* cannot be executed.
    """
    with _Rehearsal(command, grace_s) as rehearsal:
        # wait: BEGIN_S; the finding is that nothing began
        rehearsal.wait(lambda: rehearsal.has_begun() or rehearsal.launcher_ended(), BEGIN_S)
        if not rehearsal.has_begun():
            yield _never_began(rehearsal)
            return
        sent_at = rehearsal.send_notice()
        # wait: HEAR_S; the finding is who heard nothing
        rehearsal.wait(lambda: rehearsal.has_heard() or rehearsal.launcher_ended(), HEAR_S)
        # wait: LATE_S; the same
        if not rehearsal.wait(rehearsal.has_heard, LATE_S):
            yield _unheard(rehearsal, command)
            return
        took_s = time.monotonic() - sent_at
        reached = "its process" if len(rehearsal.began) == 1 else f"all {len(rehearsal.began)} processes"
        yield Finding("launcher", "good", f"a SIGTERM to it reaches {reached}, within {seconds(took_s)}")
        # wait: the grace period and END_S; the finding is that the processes have not ended
        rehearsal.wait(rehearsal.has_ended, grace_s + END_S)
        yield from _time_left(rehearsal, time.monotonic() - sent_at, grace_s)
        yield _exit_code(rehearsal, command)


class _Rehearsal:
    """A launcher and the processes that it starts. It is a context manager, which leaves none of them behind."""

    def __init__(self, command: Sequence[str], grace_s: float) -> None:
        self._command = command
        self._grace_s = grace_s

    def __enter__(self) -> _Rehearsal:
        self._folder = Path(tempfile.mkdtemp(prefix="spot-doctor-"))
        with ExitStack() as held:  # for Ctrl-C after the launcher has started, and before this process knows it
            held.callback(shutil.rmtree, self._folder, ignore_errors=True)
            # The kernel frees the lock when this process ends, however it ends. The processes leave then.
            guard = held.enter_context((self._folder / rank_program.GUARD).open("w"))
            # wait: none; no other process knows the file yet
            fcntl.flock(guard, fcntl.LOCK_EX)
            self._start()
            self._held = held.pop_all()
        return self

    def _start(self) -> None:
        self._log = self._folder / "log"
        words = [*self._command, rank_program.__file__, str(self._folder), f"{self._grace_s:g}"]
        try:
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise ConfigError(f"the launcher {words[0]!r} cannot be executed: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        # The processes end as soon as their folder is gone, wherever they run and whoever has adopted them.
        gone = self._folder.with_name(f"{self._folder.name}-gone")
        self._folder.rename(gone)
        # wait: END_S; then the launcher and its process group are killed
        self.wait(self.launcher_ended, END_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # wait: at once; the launcher was killed
        self.process.wait()
        self._held.close()
        shutil.rmtree(gone, ignore_errors=True)

    @property
    def began(self) -> dict[int, dict[str, Any]]:
        """The facts that each process that began has told of itself, by process id."""
        return {int(path.name.partition("-")[2]): json.loads(path.read_text()) for path in self._folder.glob("began-*")}

    @property
    def advice(self) -> list[str]:
        """The remedies that the processes have for their launcher, each once."""
        return list(dict.fromkeys(text for facts in self.began.values() for text in facts["advice"]))

    @property
    def last_words(self) -> str:
        """The last line of what the launcher and its processes printed."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")

    def send_notice(self) -> float:
        """Send a SIGTERM to the launcher. Return the monotonic time."""
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    def has_begun(self) -> bool:
        """Return True if all processes of the launcher have begun."""
        began = self.began
        return len(began) >= max((facts["world_size"] for facts in began.values()), default=1)

    def launcher_ended(self) -> bool:
        """Return True if the launcher has ended."""
        return self.process.poll() is not None

    def has_heard(self) -> bool:
        """Return True if all processes have heard a signal."""
        return not self.deaf

    @property
    def deaf(self) -> list[int]:
        """Process ids of those that have heard no signal."""
        return [pid for pid in self.began if not self._has(pid, "heard")]

    def has_ended(self) -> bool:
        """Return True if no process holds its lock any more. The kernel frees it at the end of a process."""
        return all(map(self._is_unlocked, self.began))

    def all_left(self) -> bool:
        """Return True if all processes have ended by themselves, so that nobody killed one."""
        return all(self._has(pid, "left") for pid in self.began)

    def wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait until *condition* holds, at most *limit_s* seconds. Return whether it does."""
        deadline = time.monotonic() + limit_s
        while not (holds := condition()) and time.monotonic() < deadline:
            # wait: LOOK_S; it looks again
            time.sleep(LOOK_S)
        return holds

    def _has(self, pid: int, kind: str) -> bool:
        return (self._folder / f"{kind}-{pid}").exists()

    def _is_unlocked(self, pid: int) -> bool:
        with (self._folder / f"began-{pid}").open() as file:
            try:
                # wait: none; a lock that is held is an error
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


def _never_began(rehearsal: _Rehearsal) -> Finding:
    code = rehearsal.process.poll()
    ended = f"within {BEGIN_S:g} s" if code is None else f"before it ended with code {code}"
    text = f"it did not start all of its processes {ended}. Its last line: {rehearsal.last_words}"
    remedy = "give a launcher with its options and without a program, such as: torchrun --nproc-per-node 8"
    return Finding("launcher", "bad", text, remedy)


def _unheard(rehearsal: _Rehearsal, command: Sequence[str]) -> Finding:
    num_deaf, num_all = len(rehearsal.deaf), len(rehearsal.began)
    text = f"{num_deaf} of {num_all} processes got no notice after a SIGTERM to the launcher"
    remedy = next(iter(rehearsal.advice), f"start the training with: spot run -- {quoted(command)} ...")
    return Finding("launcher", "bad", text, remedy)


def _time_left(rehearsal: _Rehearsal, held_s: float, grace_s: float) -> Iterator[Finding]:
    advice = rehearsal.advice
    if rehearsal.all_left():
        yield Finding("launcher", "good", f"it leaves its processes the grace period of {seconds(grace_s)}")
    else:
        text = f"it ends its processes {seconds(held_s)} after the SIGTERM, but {seconds(grace_s)} are the grace period"
        remedy = advice.pop(0) if advice else "raise its timeout, or give the shorter time: --grace-seconds"
        yield Finding("launcher", "warning", text, remedy)
    for text in advice:
        yield Finding("launcher", "warning", "it has settings that do harm after a preemption", text)


def _exit_code(rehearsal: _Rehearsal, command: Sequence[str]) -> Finding:
    # wait: END_S; the finding is that the launcher does not end
    if not rehearsal.wait(rehearsal.launcher_ended, END_S):
        return Finding(
            "launcher", "bad", f"it has not ended {END_S:g} s after its processes", "spot run -- ... ends it"
        )
    code = rehearsal.process.returncode
    if code in (Preempted.EXIT_CODE, -signal.SIGTERM):
        return Finding("launcher", "good", f"it ends with code {Preempted.EXIT_CODE}, as a preempted training does")
    remedy = f"let it be started by: spot run -- {quoted(command)} ..., which ends with {Preempted.EXIT_CODE}"
    if code == 0:
        return Finding("launcher", "bad", "it ends with code 0, so a scheduler takes the training for finished", remedy)
    return Finding(
        "launcher", "warning", f"it ends with code {code}, so a scheduler takes a preemption for a failure", remedy
    )
