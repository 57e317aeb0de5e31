"""
``spot run``: a small init process in front of a launcher, which sees to it that a notice reaches the ranks.

``accelerate launch`` with one process dies of a SIGTERM and leaves its child alone; torchrun kills what is left after
30 seconds, and all of them leave their ranks behind when they are killed themselves. As process 1 of a container,
python ignores SIGTERM, and a shell does not pass it on.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from ..errors import Preempted
from . import roster
from .launcher import TIMEOUT_VARIABLES

NOTICES: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What is passed on, as a SIGTERM. SLURM sends SIGUSR1 if ``--signal`` says so."""

LOOK_S: Final = 0.1  # how often it looks who is left, once there is a notice or the command has ended

_PUSHER: Final = b"spot_plugins.push.worker"
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


def environment(environ: Mapping[str, str], grace_s: float, folder: Path) -> dict[str, str]:
    """Return *environ* for a command whose ranks have *grace_s* seconds to leave, and write down who they are."""
    ours = {"SPOT_GRACE_SECONDS": f"{grace_s:g}", roster.GRACE_VARIABLE: f"{grace_s:g}", roster.VARIABLE: str(folder)}
    if not any(name in environ for name in TIMEOUT_VARIABLES):
        ours[TIMEOUT_VARIABLES[-1]] = str(math.ceil(grace_s))
    return {**environ, **ours}


def supervise(command: Sequence[str], grace_s: float, max_restarts: int = 0) -> int:
    """
    Run *command* until it and all that it started have ended. Call it on the main thread, once per process.

    Args:
        command: A program and its arguments.
        grace_s: Seconds from a signal until everything that is left is killed.
        max_restarts: How often the command is run again after it failed; never after a notice.

    Returns:
        The exit code: 143 if ranks were asked to leave, or left because of a notice of their own; else the command's,
        128 + n if signal n ended it.

    Raises:
        OSError: The command cannot be run; its ``filename`` is then the program. Any other says that ``spot run``
            itself cannot work here.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not let this process adopt orphans")
    # Not those that a shell or nohup has ignored for what it starts. Blocked, they come to sigwait: no handler, no
    # race, and process 1 gets them too.
    notices = {number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN}
    # If whoever started us ignores it, the kernel throws away how children end, ours and those of the command.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*notices, signal.SIGCHLD})
    try:
        with tempfile.TemporaryDirectory(prefix="spot-run-") as name:
            for num_left in range(max_restarts, -1, -1):
                code = _Life(command, grace_s, Path(name), notices, mask, may_restart=num_left > 0).live()
                if code in (0, Preempted.EXIT_CODE) or num_left == 0:
                    break
                _say(f"the command ended with {code}; running it again, {num_left - 1} restarts are left")
                roster.clear(Path(name))
        return code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Life:
    """The command and all its descendants, from its start until nothing is left of them."""

    def __init__(
        self,
        command: Sequence[str],
        grace_s: float,
        folder: Path,
        notices: Set[int],
        mask: Set[int],
        *,
        may_restart: bool,
    ) -> None:
        self._grace_s = grace_s
        self._folder = folder
        self._notices = notices
        self._may_restart = may_restart
        self._is_noticed = False
        self._rank_has_left = False
        self._deadline = math.inf
        self._told: set[int] = set()
        self._code: int | None = None
        parent = os.getpid()

        def begin() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # if we are killed, a launcher still ends its ranks
            if os.getppid() != parent:
                os._exit(Preempted.EXIT_CODE)

        # In a session of its own: Ctrl-C in a terminal comes to us alone, and to the ranks as a notice.
        self._child = subprocess.Popen(
            command, env=environment(os.environ, grace_s, folder), preexec_fn=begin, start_new_session=True
        )

    def live(self) -> int:
        """Pass on notices, adopt orphans, kill what is late, and wait for pushers. Return the exit code."""
        while True:
            self._reap()
            is_quiet = self._code is None and not self._is_noticed
            if not is_quiet and self._see_to_the_rest():
                self._reap()
                return self._exit_code()
            awaited = {*self._notices, signal.SIGCHLD}
            arrived = signal.sigwaitinfo(awaited) if is_quiet else signal.sigtimedwait(awaited, LOOK_S)
            if arrived is not None and arrived.si_signo in self._notices and not self._is_noticed:
                self._notice(signal.Signals(arrived.si_signo).name)

    def _notice(self, name: str) -> None:
        _say(f"{name}: the ranks save and leave, within {self._grace_s:g} s")
        self._is_noticed = True
        self._begin_grace()
        if self._code is None:
            self._send({self._child.pid})

    def _see_to_the_rest(self) -> bool:
        """Tell all who do not know yet to leave, and kill them once it is too late. Return whether nothing is left."""
        left = list(_descendants(os.getpid()))
        others = {pid for pid, _, is_pusher in left if not is_pusher}
        if self._is_noticed:
            self._send(roster.ranks(self._folder) & others)
        if self._code is not None:
            # Whoever has us for a parent has lost its launcher. The workers of loaders end with their rank.
            self._send_to_orphans({pid for pid, parent, _ in left if parent == os.getpid()} & others)
            if self._code != 0 and self._may_restart:
                self._begin_grace()  # pushers are waited for, but not for long: the next attempt finds what they wrote
        if is_over := time.monotonic() >= self._deadline:
            for pid in others:
                _kill(pid, signal.SIGKILL)
        return self._code is not None and not others and (is_over or not left)

    def _send_to_orphans(self, orphans: set[int]) -> None:
        if orphans and math.isinf(self._deadline):
            _say(f"the command ended with {self._code} and left {len(orphans)} processes behind, which save and leave")
            self._begin_grace()
        self._send(orphans)

    def _begin_grace(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + self._grace_s)

    def _send(self, pids: set[int]) -> None:
        """Send each of them one SIGTERM."""
        for pid in pids - self._told:
            self._told.add(pid)
            _kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child.pid:
                self._code = os.waitstatus_to_exitcode(status)
                # Before orphans are told to leave, which is no notice: their launcher has failed.
                self._rank_has_left = roster.has_left(self._folder)
                self._child.returncode = self._code  # else its destructor would wait for it

    def _exit_code(self) -> int:
        assert self._code is not None
        if self._rank_has_left or (self._is_noticed and (self._code != 0 or roster.has_left(self._folder))):
            return Preempted.EXIT_CODE
        return self._code if self._code >= 0 else 128 - self._code


def _descendants(root: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the process id, the parent and whether it is a pusher, of all that *root* has started or adopted."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (parent := _parent_of(folder)) is not None:
            parents[int(folder.name)] = parent
    for pid, parent in parents.items():
        ancestor: int | None = parent
        while ancestor is not None and ancestor != root:
            ancestor = parents.get(ancestor)
        if ancestor == root:
            yield pid, parent, _PUSHER in _command_of(pid)


def _parent_of(folder: Path) -> int | None:
    """Return the parent of a process that lives; None for one that has ended."""
    try:
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it ended meanwhile
        pass
    except PermissionError:
        _say(f"process {pid} belongs to another user, and cannot be told to leave")


def _say(text: str) -> None:
    sys.stderr.write(f"spot run: {text}\n")
    sys.stderr.flush()
