"""SIGTERM and SIGHUP as notices, other signals if the caller names them, and SIGINT while the process leaves."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from ..errors import ConfigError
from ..machine.threads import NoThreadError, start_thread

AGAIN_S: Final = 1.0
"""Shortest time in seconds between two calls of ``on_again``. Launchers send a signal twice in a row."""

TOGETHER_S: Final = 0.2
"""Seconds after a SIGINT in which a notice belongs to it, because the kernel does not keep the order of signals."""

NOT_OBEYED: Final = "the signal is not obeyed, because training ends with an error. If the program continues, end it"
"""The warning of whoever shows an error in place of a notice that :meth:`SignalNotices.uninstall` names."""

CLOSE_WAIT_S: Final = 5.0
"""Longest wait in seconds for the thread that calls back. It takes that long only if other ranks hang."""


class SignalNotices:
    """
    Calls back once, soon after the first signal, from the thread ``spot-signals``.

    The Python handler does nothing. It runs between two bytecodes of the main thread, perhaps while that thread holds a
    lock or is in a collective, so logging, I/O and torch are unsafe there. It may also run late, because Python calls
    no handler while the main thread is in a long C call. Therefore the thread reads the signal number from Python's
    wakeup descriptor, to which the handler in C writes at once.

    Later signals are no notices, because the process already leaves after the first one. A forked child restores the
    default, so that ``Process.terminate()`` ends the child and is no notice to its parent.

    SIGHUP is a notice unless it is ignored, as under ``nohup``, or the program has a handler for it. SIGINT is none. It
    gets to the program's own handler, which raises ``KeyboardInterrupt`` by default, unless the process leaves. The
    thread decides that, because Python would call the handler of SIGINT before that of an earlier SIGTERM. If no notice
    comes with the SIGINT, the thread sends a SIGINT of its own to the main thread.

    Args:
        on_notice: Called with the name of the signal and the monotonic time at which it was received.
        others: Signals that are notices beside SIGTERM and SIGHUP, unless the program has a handler for them.
        on_again: Called with the name of a later signal, at most once in :data:`AGAIN_S` seconds.
        leaves: Returns whether the process leaves, though no signal to it was a notice. Called on the thread.
    """

    def __init__(
        self,
        on_notice: Callable[[str, float], None],
        others: Iterable[signal.Signals] = (),
        *,
        on_again: Callable[[str], None] = lambda name: None,
        leaves: Callable[[], bool] = lambda: False,
    ) -> None:
        self._on_notice = on_notice
        self._on_again = on_again
        self._leaves = leaves
        self._others = (signal.SIGHUP, *others)
        self._is_shielded = False  # True if SIGINT is kept away from the program
        self._interrupts = False  # True if the next SIGINT gets to the program
        self._left_over: set[int] = set()  # signals that nothing has obeyed yet
        self._previous_handlers: dict[int, Any] = {}
        self._previous_fd = -1
        self._installed = False
        self._pipe = (-1, -1)  # its ends to read from and to write to
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """
        Take over the signals, on the main thread. :meth:`uninstall` restores the old handlers.

        Raises:
            ConfigError: Another object of this kind has taken them, or the machine has no room for a thread.
        """
        global _active
        check_signals_free()
        self._pipe = _, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        thread = threading.Thread(target=self._read_signals, name="spot-signals", daemon=True)
        try:
            self._thread = start_thread(thread)
        except NoThreadError as error:
            for fd in self._pipe:
                os.close(fd)
            raise ConfigError(f"signals cannot be taken as notices: {error}") from error
        free = [number for number in self._others if signal.getsignal(number) == signal.SIG_DFL]
        ours = [signal.SIGTERM, *free]
        if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
            ours.append(signal.SIGINT)
        for number in ours:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        self._previous_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        self._installed, self._left_over = True, set()
        _active = self

    @property
    def installed(self) -> bool:
        """True while signals are taken as notices."""
        return self._installed

    def retake(self) -> None:
        """Install the handlers again, after other code has wrapped or replaced them."""
        if self._installed:
            for number in self._previous_handlers:
                if number != signal.SIGINT:  # a handler that came later is the program's own
                    signal.signal(number, self._on_signal)

    def shield(self, *, on: bool) -> None:
        """Keep SIGINT away from the program while it leaves. Call it on the main thread."""
        self._is_shielded = on

    def uninstall(self, *, for_good: bool = False) -> bool:
        """
        Restore the old handlers. It does nothing if the signals are not taken.

        With *for_good*, the signals are ignored from now on, because the process leaves and a second signal must not
        cut that short. Otherwise a SIGINT that the thread had not decided on gets to the program's own handler, here.

        Returns:
            Whether a notice came before the old handlers were restored. The caller obeys it, because the program does
            not hear of it.
        """
        global _active
        if not self._installed:
            return False
        has_interrupts = signal.getsignal(signal.SIGINT) == self._on_signal
        self._installed = False
        _active = None
        if for_good:
            self._previous_handlers = dict.fromkeys(self._previous_handlers, signal.SIG_IGN)
        for number, previous in self._previous_handlers.items():
            if signal.getsignal(number) == self._on_signal:  # else other code has replaced the handler
                signal.signal(number, previous or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        os.write(self._pipe[1], b"\0")
        assert self._thread is not None
        # wait: CLOSE_WAIT_S; the thread ends after its callback
        self._thread.join(CLOSE_WAIT_S)
        if not self._thread.is_alive():  # else the thread will read from them once more
            for fd in self._pipe:
                os.close(fd)
        self._thread = None
        has_notice = bool(self._left_over - {signal.SIGINT})
        if has_interrupts and self._left_over and not has_notice:
            signal.raise_signal(signal.SIGINT)
        return has_notice

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Do nothing, because the thread calls back. Pass the signal on if it interrupts or this handler is stale."""
        previous = self._previous_handlers.get(signum) or signal.SIG_DFL
        if not self._installed and self._thread is not None:
            self._left_over.add(signum)  # uninstall() is under way, and the thread may not read of it any more
        elif not self._installed:
            # A host remembered this handler as the original one and installed it again after uninstall().
            signal.signal(signum, previous)
            signal.raise_signal(signum)
        elif signum == signal.SIGINT and self._interrupts and not self._is_shielded:
            self._interrupts = False
            if callable(previous):
                previous(signum, frame)
            else:
                signal.signal(signum, previous)
                signal.raise_signal(signum)

    def _interrupt(self) -> bool:
        """
        Let the main thread call the program's handler of SIGINT, and return True.

        Return False if a handler was put over ours, because it has been called already. Return False too if
        :meth:`uninstall` has restored the old handler. Then :meth:`uninstall` calls that handler.
        """
        if signal.getsignal(signal.SIGINT) != self._on_signal:
            if not self._installed:
                self._left_over.add(signal.SIGINT)
            return False
        self._interrupts = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        return True

    def _read_signals(self) -> None:
        called_back_at, num_own = math.nan, 0
        read_fd, _ = self._pipe
        while True:
            # wait: until a signal arrives or uninstall() writes a zero; a thread of its own
            numbers = os.read(read_fd, 64)
            # wait: TOGETHER_S; then SIGINT has come alone
            if set(numbers) == {signal.SIGINT} and select.select([read_fd], [], [], TOGETHER_S)[0]:
                # wait: at once; there is something to read
                numbers += os.read(read_fd, 64)
            if self._previous_fd != -1 and (signals := numbers.replace(b"\0", b"")):
                os.write(self._previous_fd, signals)  # an event loop of the program reads them too
            notices = [number for number in numbers if number in self._previous_handlers and number != signal.SIGINT]
            num_interrupts = numbers.count(signal.SIGINT)
            num_own, num_interrupts = max(0, num_own - num_interrupts), max(0, num_interrupts - num_own)
            if notices and math.isnan(called_back_at):
                self._is_shielded = True
                called_back_at = time.monotonic()
                self._left_over.add(notices[0])
                self._on_notice(signal.Signals(notices[0]).name, called_back_at)
            elif num_interrupts and not (notices or self._is_shielded or self._leaves()):
                num_own += self._interrupt()
            elif (notices or num_interrupts) and not time.monotonic() - called_back_at < AGAIN_S:  # NaN at first
                called_back_at = time.monotonic()
                self._on_again(signal.Signals([*notices, signal.SIGINT][0]).name)
            if 0 in numbers:
                return


_active: SignalNotices | None = None


def check_signals_free() -> None:
    """
    Check that nothing in this process takes SIGTERM as a notice.

    Raises:
        ConfigError: A session does. Both would save and leave at the same signal, each for itself.
    """
    if _active is not None:
        raise ConfigError(
            "SIGTERM is a notice to another SpotHook, SpotLoop, SpotCheckpoint or SpotSession of this process, which "
            "is still open. Let one end before the next one begins, and use one run for everything that is trained at "
            "the same time"
        )


class _Forking(threading.local):
    mask: set[int] | None = None
    """The original signal mask of the forking thread, while signals are blocked for the fork."""


_forking = _Forking()


def _before_fork() -> None:
    """
    Block the signals until the child has restored its defaults.

    Otherwise a child that is terminated at once would write to its parent's pipe and survive.
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
    Restore SIGTERM's default action and the handler of SIGINT in a forked child, and detach it from its parent's pipe.

    The child ignores the other signals, because SLURM sends them to all processes of a step, including the workers of
    data loaders.
    """
    global _active
    if _active is not None:
        handlers = {**dict.fromkeys(_active._previous_handlers, signal.SIG_IGN), signal.SIGTERM: signal.SIG_DFL}
        if signal.SIGINT in handlers:
            handlers[signal.SIGINT] = _active._previous_handlers[signal.SIGINT]
        _active._installed, _active._thread = False, None
        _active = None
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
