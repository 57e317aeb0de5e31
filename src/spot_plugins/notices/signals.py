"""SIGTERM as a notice, and other signals where they are one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

CLOSE_WAIT_S: Final = 5.0
"""Longest wait for the thread that calls back. Only one that has to tell ranks that hang takes that long."""


class SignalNotices:
    """
    Call *on_notice* once, soon after the first signal, from a thread of its own, with its name and when it came.

    The handler only records. It runs between two bytecodes of the main thread, perhaps inside a lock or a
    collective, so logging, I/O and torch are all unsafe there. And it may run late: while the main thread
    is inside a long C call, python-level handlers wait. So a thread reads the signal number from Python's
    wakeup descriptor, which the C-level handler writes at once, and calls back from there.

    SIGTERM is always one; so are *others*, unless the program has a handler for them.

    Later ones are swallowed: the first one already makes the process leave. Install it from the main
    thread. A forked child forgets it, so that ``Process.terminate()`` still ends the child, and only it.
    """

    def __init__(self, on_notice: Callable[[str, float], None], others: Iterable[signal.Signals] = ()) -> None:
        self._on_notice = on_notice
        self._others = tuple(others)
        self._received_at: float | None = None
        self._previous_handlers: dict[int, Any] = {}
        self._previous_fd = -1
        self._installed = False
        self._read_fd = -1
        self._write_fd = -1
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Take over the signals. Old handlers are not called, and come back with :meth:`uninstall`."""
        global _active
        assert not self._installed and _active is None, "SIGTERM is already watched in this process"
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        free = [number for number in self._others if signal.getsignal(number) == signal.SIG_DFL]
        for number in (signal.SIGTERM, *free):
            self._previous_handlers[number] = signal.signal(number, self._record)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._installed = True
        _active = self
        self._thread = threading.Thread(target=self._watch, name="spot-signals", daemon=True)
        self._thread.start()

    @property
    def installed(self) -> bool:
        """Whether signals are taken as notices."""
        return self._installed

    def retake(self) -> None:
        """Put the handlers back in place after somebody composed them with, or replaced them by, others."""
        if self._installed:
            for number in self._previous_handlers:
                signal.signal(number, self._record)

    def uninstall(self, *, for_good: bool = False) -> None:
        """
        Give the signals back. Harmless when they are not taken.

        With *for_good* they are ignored from now on: the process is leaving because of one, and another must not cut
        that short.
        """
        global _active
        if not self._installed:
            return
        self._installed = False
        _active = None
        if for_good:
            self._previous_handlers = dict.fromkeys(self._previous_handlers, signal.SIG_IGN)
        for number, previous in self._previous_handlers.items():
            if signal.getsignal(number) == self._record:  # else it belongs to somebody else by now
                signal.signal(number, previous or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        os.write(self._write_fd, b"\0")
        assert self._thread is not None
        self._thread.join(CLOSE_WAIT_S)
        if not self._thread.is_alive():  # else it reads from them once more when it comes back
            os.close(self._read_fd)
            os.close(self._write_fd)

    @property
    def received_at(self) -> float | None:
        """``time.monotonic()`` of the first signal, or None."""
        return self._received_at

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if not self._installed:
            # A host remembered this handler as the original one and brought it back after uninstall().
            signal.signal(signum, self._previous_handlers.get(signum) or signal.SIG_DFL)
            signal.raise_signal(signum)
        elif self._received_at is None:
            self._received_at = time.monotonic()

    def _watch(self) -> None:
        told = False
        while True:
            numbers = os.read(self._read_fd, 64)
            if self._previous_fd != -1 and (signals := numbers.replace(b"\0", b"")):
                os.write(self._previous_fd, signals)  # an event loop of the program waits for them too
            heard = [number for number in numbers if number in self._previous_handlers]
            if heard and not told:
                told = True
                self._on_notice(signal.Signals(heard[0]).name, time.monotonic())
            if 0 in numbers:
                return


_active: SignalNotices | None = None


class _Forking(threading.local):
    mask: set[int] | None = None
    """The forking thread's signal mask, while it is not its own."""


_forking = _Forking()


def _before_fork() -> None:
    """
    Hold the signals back until the child has forgotten all this.

    Else a child that is terminated at once would tell the parent's pipe of it, and survive.
    """
    if _active is not None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(_active._previous_handlers))
        _forking.mask = {int(number) for number in mask}


def _after_fork() -> None:
    mask, _forking.mask = _forking.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """
    Give a forked child SIGTERM's default action; its bytes must not reach the parent's pipe.

    The other signals are ignored there: SLURM sends them to all processes of a step, loaders' workers too.
    """
    global _active
    if _active is not None:
        taken = tuple(_active._previous_handlers)
        _active._installed = False
        _active = None
        signal.set_wakeup_fd(-1)
        for number in taken:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
