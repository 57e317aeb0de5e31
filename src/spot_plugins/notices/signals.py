"""SIGTERM as a notice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

CLOSE_WAIT_S: Final = 5.0
"""Longest wait for the thread that calls back. Only one that has to tell ranks that hang takes that long."""


class SignalNotices:
    """
    Call *on_notice* once, soon after the first SIGTERM, from a thread of its own.

    The handler only records. It runs between two bytecodes of the main thread, perhaps inside a lock or a
    collective, so logging, I/O and torch are all unsafe there. And it may run late: while the main thread
    is inside a long C call, python-level handlers wait. So a thread reads the signal number from Python's
    wakeup descriptor, which the C-level handler writes at once, and calls back from there.

    Later SIGTERMs are swallowed: the first one already makes the process leave. Install it from the main
    thread. A forked child forgets it, so that ``Process.terminate()`` still ends the child, and only it.
    """

    def __init__(self, on_notice: Callable[[float], None]) -> None:
        self._on_notice = on_notice
        self._received_at: float | None = None
        self._previous_handler: Any = None
        self._previous_fd = -1
        self._installed = False
        self._read_fd = -1
        self._write_fd = -1
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Take over SIGTERM. The old handler is not called, and comes back with :meth:`uninstall`."""
        global _active
        assert not self._installed and _active is None, "SIGTERM is already watched in this process"
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._previous_handler = signal.signal(signal.SIGTERM, self._record)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._installed = True
        _active = self
        self._thread = threading.Thread(target=self._watch, name="spot-signals", daemon=True)
        self._thread.start()

    @property
    def installed(self) -> bool:
        """Whether SIGTERM is taken as a notice."""
        return self._installed

    def retake(self) -> None:
        """Put the handler back in place after somebody composed it with, or replaced it by, another."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._record)

    def uninstall(self, *, for_good: bool = False) -> None:
        """
        Give SIGTERM back. Harmless when it is not installed.

        With *for_good* it is ignored from now on: the process is leaving because of one, and another must not cut
        that short.
        """
        global _active
        if not self._installed:
            return
        self._installed = False
        _active = None
        if for_good:
            self._previous_handler = signal.SIG_IGN
        if signal.getsignal(signal.SIGTERM) == self._record:  # else it belongs to somebody else by now
            signal.signal(signal.SIGTERM, self._previous_handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        os.write(self._write_fd, b"\0")
        assert self._thread is not None
        self._thread.join(CLOSE_WAIT_S)
        if not self._thread.is_alive():  # else it reads from them once more when it comes back
            os.close(self._read_fd)
            os.close(self._write_fd)

    @property
    def received_at(self) -> float | None:
        """``time.monotonic()`` of the first SIGTERM, or None."""
        return self._received_at

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if not self._installed:
            # A host remembered this handler as the original one and brought it back after uninstall().
            signal.signal(signal.SIGTERM, self._previous_handler or signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        elif self._received_at is None:
            self._received_at = time.monotonic()

    def _watch(self) -> None:
        told = False
        while True:
            numbers = os.read(self._read_fd, 64)
            if self._previous_fd != -1 and (signals := numbers.replace(b"\0", b"")):
                os.write(self._previous_fd, signals)  # an event loop of the program waits for them too
            if signal.SIGTERM in numbers and not told:
                told = True
                self._on_notice(time.monotonic())
            if 0 in numbers:
                return


_active: SignalNotices | None = None


class _Forking(threading.local):
    mask: set[int] | None = None
    """The forking thread's signal mask, while it is not its own."""


_forking = _Forking()


def _before_fork() -> None:
    """
    Hold SIGTERM back until the child has forgotten all this.

    Else a child that is terminated at once would tell the parent's pipe of it, and survive.
    """
    if _active is not None:
        _forking.mask = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})}


def _after_fork() -> None:
    mask, _forking.mask = _forking.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """Give a forked child SIGTERM's default action; its bytes must not reach the parent's pipe."""
    global _active
    if _active is not None:
        _active._installed = False
        _active = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
