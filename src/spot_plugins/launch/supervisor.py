"""
``spot run``: a small init process in front of a launcher, so that a notice reaches every rank.

Launchers alone are not enough. ``accelerate launch`` with one process dies of a SIGTERM and leaves its child running.
torchrun kills its ranks after 30 s. No launcher ends its ranks if it is killed itself. As process 1 of a container,
python ignores SIGTERM, and a shell does not forward it.
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
from . import rendezvous, roster
from .launcher import OWN_STORE_VARIABLE, TIMEOUT_VARIABLES
from .rendezvous import Rendezvous, endpoint_of

NOTICES: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that are forwarded, as a SIGTERM. SLURM sends SIGUSR1 if ``--signal`` asks for it."""

LOOK_S: Final = 0.1  # seconds between two looks at the processes, after a notice or the end of the command

QUIET_LOOK_S: Final = 0.5
"""Seconds between two looks at the roster, for a rank whose machine will be taken."""

PUSHER: Final = b"spot_plugins.push.worker"
"""Text that is in the command line of each pusher process, and in no other."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


def environment(environ: Mapping[str, str], grace_s: float, folder: Path) -> dict[str, str]:
    """
    Return *environ* for a command whose ranks have *grace_s* seconds to leave, and join the roster in *folder*.

    If the command is torchrun, it can restart its ranks.
    """
    ours = {"SPOT_GRACE_SECONDS": f"{grace_s:g}", roster.GRACE_VARIABLE: f"{grace_s:g}", roster.VARIABLE: str(folder)}
    if OWN_STORE_VARIABLE not in environ:
        ours[OWN_STORE_VARIABLE] = "1"
    if not any(name in environ for name in TIMEOUT_VARIABLES):
        ours[TIMEOUT_VARIABLES[-1]] = str(math.ceil(grace_s))
    return {**environ, **ours}


def supervise(command: Sequence[str], grace_s: float, max_restarts: int = 0) -> int:
    """
    Start *command*, and wait until it and all its descendants have ended. Call it on the main thread, once per process.

    Args:
        command: A program and its arguments.
        grace_s: Seconds from a signal until all remaining processes are killed.
        max_restarts: Number of times that the command is started again after a failure. After a notice it is not.

    Returns:
        143 if the ranks left because of a signal to this process or because of a notice of their own. Otherwise the
        exit code of the command, which is 128 + n if signal n ended it.

    Raises:
        OSError: The command cannot be executed. Then ``filename`` is the program. With any other ``filename``,
            ``spot run`` itself cannot work here.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        reason = "the kernel does not let this process adopt orphans. Start the command without spot run"
        raise OSError(ctypes.get_errno(), reason)
    # Signals that a shell or nohup has set to be ignored stay ignored. The others are blocked and read by sigwaitinfo,
    # which needs no handler, has no race, and works in process 1 too.
    notices = {number for number in NOTICES if signal.getsignal(number) is not signal.SIG_IGN}
    # If the parent of this process ignores SIGCHLD, the kernel drops the exit codes of all children below it.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*notices, signal.SIGCHLD})
    try:
        with tempfile.TemporaryDirectory(prefix="spot-run-") as name:
            for num_left in range(max_restarts, -1, -1):
                # wait: until the command and its processes have ended, after a notice the grace period; late processes
                # are killed
                code = _Command(command, grace_s, Path(name), notices, mask, may_restart=num_left > 0).wait()
                if code in (0, Preempted.EXIT_CODE) or num_left == 0:
                    break
                _log(f"the command ended with {code} and is started again, {num_left - 1} restarts are left")
                roster.clear(Path(name))
        return code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Command:
    """The command and all its descendants, from its start until the last of them has ended."""

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
        self._signaled: set[int] = set()
        self._of_others: set[int] = set()  # processes of other users
        self._code: int | None = None
        self._rendezvous = Rendezvous(endpoint_of(command, os.environ))
        parent = os.getpid()

        def before_exec() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            end_with(parent)  # if this process is killed, the launcher ends its ranks

        # In a session of its own, so that Ctrl-C in a terminal reaches only this process, which forwards it.
        self._child = subprocess.Popen(
            command, env=environment(os.environ, grace_s, folder), preexec_fn=before_exec, start_new_session=True
        )

    def wait(self) -> int:
        """
        Forward notices, adopt orphans, kill late processes and wait for pushers.

        Returns:
            The exit code for ``spot run``.
        """
        while True:
            self._reap()
            is_quiet = self._code is None and not self._is_noticed
            if not is_quiet and self._end_descendants():
                self._reap()
                return self._exit_code()
            awaited = {*self._notices, signal.SIGCHLD}
            # wait: QUIET_LOOK_S, after a notice or the end of the command LOOK_S; it looks at the processes again
            arrived = signal.sigtimedwait(awaited, QUIET_LOOK_S if is_quiet else LOOK_S)
            if self._is_noticed:
                continue
            if arrived is not None and arrived.si_signo in self._notices:
                self._on_notice(signal.Signals(arrived.si_signo).name)
            elif roster.machine_ends(self._folder):  # otherwise torchrun would start the ranks again on this machine
                self._on_notice("a rank left because this machine will be taken")
            elif is_quiet and self._rendezvous.is_lost(has_ranks=self._has_ranks()):
                _log(
                    f"no rank runs, and nobody has answered at the rendezvous {self._rendezvous.name} for "
                    f"{rendezvous.LOST_S:g} s. The command waits for it without a limit, so it is killed. Start it "
                    "again when the rendezvous can be reached, or with another one"
                )
                self._rendezvous = Rendezvous(None)
                self._kill(self._child.pid, signal.SIGKILL)

    def _has_ranks(self) -> bool:
        """Return whether a rank runs, or none has run yet. A launcher that is stuck does not reap its ranks."""
        ranks = roster.ranks(self._folder)
        return not ranks or any(_parent_of(Path(f"/proc/{pid}")) is not None for pid in ranks)

    def _on_notice(self, name: str) -> None:
        _log(f"{name}: the ranks save and leave, within {self._grace_s:g} s")
        self._is_noticed = True
        self._begin_grace()
        if self._code is None:
            self._send({self._child.pid})

    def _end_descendants(self) -> bool:
        """
        Send a SIGTERM to each process that has to leave, and a SIGKILL after the deadline.

        Returns:
            True if the command and all its descendants have ended.
        """
        left = list(_descendants(os.getpid()))
        others = {pid for pid, _, is_pusher in left if not is_pusher}
        if self._is_noticed:
            self._send(roster.ranks(self._folder) & others)
        if self._code is not None:
            # A process whose parent is this one has lost its launcher. Workers of data loaders end with their rank.
            self._send_to_orphans({pid for pid, parent, _ in left if parent == os.getpid()} & others)
            if self._code != 0 and self._may_restart:
                self._begin_grace()  # a limit for pushers too, because the next attempt finds what they wrote locally
        if is_over := time.monotonic() >= self._deadline:
            for pid in others:
                self._kill(pid, signal.SIGKILL)
        return self._code is not None and not others and (is_over or not left)

    def _send_to_orphans(self, orphans: set[int]) -> None:
        if orphans and math.isinf(self._deadline):
            _log(f"the command ended with {self._code}. {len(orphans)} of its processes still run: they save and leave")
            self._begin_grace()
        self._send(orphans)

    def _begin_grace(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + self._grace_s)

    def _send(self, pids: set[int]) -> None:
        """Send one SIGTERM to each of *pids*, and none on a second call."""
        for pid in pids - self._signaled:
            self._signaled.add(pid)
            self._kill(pid, signal.SIGTERM)

    def _kill(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # the process has ended meanwhile
            pass
        except PermissionError:
            if pid not in self._of_others:
                self._of_others.add(pid)
                _log(f"process {pid} belongs to another user, so it gets no signal")

    def _reap(self) -> None:
        while True:
            try:
                # wait: at once; no child has ended
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child.pid:
                self._code = os.waitstatus_to_exitcode(status)
                # Read before orphans get a SIGTERM. Their launcher has failed, so their leaving is not a preemption.
                self._rank_has_left = roster.has_left(self._folder)
                self._child.returncode = self._code  # otherwise the destructor of Popen would wait for the process

    def _exit_code(self) -> int:
        assert self._code is not None
        if self._rank_has_left or (self._is_noticed and (self._code != 0 or roster.has_left(self._folder))):
            return Preempted.EXIT_CODE
        return self._code if self._code >= 0 else 128 - self._code


def end_with(parent: int) -> None:
    """Let the calling process get a SIGTERM when its *parent* ends. Call it between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(Preempted.EXIT_CODE)


def _descendants(root: int) -> Iterator[tuple[int, int, bool]]:
    """Yield process id, parent and is-pusher of each process that *root* has started or adopted."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (parent := _parent_of(folder)) is not None:
            parents[int(folder.name)] = parent
    for pid, parent in parents.items():
        ancestor: int | None = parent
        while ancestor is not None and ancestor != root:
            ancestor = parents.get(ancestor)
        if ancestor == root:
            yield pid, parent, PUSHER in command_of(pid)


def _parent_of(folder: Path) -> int | None:
    """Return the parent of a running process, or None if it has ended."""
    try:
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def command_of(pid: int) -> bytes:
    """Return the command line of a process, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _log(text: str) -> None:
    sys.stderr.write(f"spot run: {text}\n")
    sys.stderr.flush()
