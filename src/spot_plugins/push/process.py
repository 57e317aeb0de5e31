"""One pusher process, as the training process sees it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..machine.threads import NoThreadError, start_thread
from . import messages
from .ledger import Submission
from .messages import Channel, PushSettings

logger = logging.getLogger(__name__)

_PROGRAM: Final = f"""\
import sys
sys.path[:] = [{str(Path(__file__).resolve().parents[2])!r}, *filter(None, sys.path)]
from spot_plugins.push.worker import main
main()
"""
"""The program of a pusher. It imports nothing from the current directory: a user's random.py must not be Python's."""

DEAF_S: Final = 10.0
"""Longest wait in seconds for the subscribers of the last event when a session is closed."""

_started: Final[list[subprocess.Popen[bytes]]] = []
"""Handles of pushers that outlive their session: Python warns when the handle of a live process is dropped."""

OnMessage: TypeAlias = "Callable[[dict[str, Any]], None]"
OnEnd: TypeAlias = "Callable[[PusherProcess], None]"


class PusherProcess:
    """
    A pusher process, the socket to it, and the thread that receives its messages.

    One thread at a time sends. Sending to a process that has died fails or is lost; *on_end* then follows. A process
    that lives and cannot be sent to is killed, because it would wait for the rest of the message for ever.

    Args:
        settings: The first message to the process.
        directory: The directory of the process. A variable or an option may hold a path that is relative to it.
        on_message: Called with each message of the process, on the thread of this object.
        on_end: Called once when the process has ended, after its last message and on the same thread.
    """

    def __init__(self, settings: PushSettings, directory: str | None, on_message: OnMessage, on_end: OnEnd) -> None:
        self._settings = settings
        self._directory = directory
        self._on_message = on_message
        self._on_end = on_end
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._is_deaf = threading.Event()
        self._known_buffers: set[int] = set()
        self._known_frozen = 0

    def start(self) -> None:
        """
        Start the process and return at once. It reads its messages a fraction of a second later.

        Raises:
            OSError: The machine has no room for another process or thread.
        """
        ours, theirs = socket.socketpair()
        # Its own session: a signal to the job's process group must not end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, messages.SIGNALS)  # inherited: see main() in worker
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=self._directory,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a pusher that outlives us would hold a pipe open, and hang its reader
            )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        _started[:] = [each for each in _started if each.poll() is None] + [process]
        self._channel = channel = Channel(ours)
        _processes.add(self)
        listener = threading.Thread(target=self._listen, args=(channel, process), name="spot-pusher", daemon=True)
        try:
            start_thread(listener)
        except NoThreadError:
            self._is_deaf.set()
            channel.close()
            process.kill()
            raise
        with contextlib.suppress(OSError):  # the thread notices
            self.send(asdict(self._settings))

    @property
    def pid(self) -> int | None:
        """Process id. None before :meth:`start`."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal. None until the process has ended."""
        return None if self._process is None else self._process.returncode

    @property
    def is_reachable(self) -> bool:
        """True if the process runs, as far as this side has noticed."""
        return self._channel is not None and not self._is_deaf.is_set()

    def push(self, submission: Submission) -> None:
        """
        Send a staged step, after the buffers and the frozen blobs that the process does not know yet.

        Raises:
            OSError: The process has died, or is about to.
        """
        for number in submission.buffers.keys() - self._known_buffers:
            lent = submission.buffers[number]
            self.send({"buffer": number, "num_bytes": lent.num_bytes}, lent.fd)
            self._known_buffers.add(number)
        if (frozen := submission.frozen) is not None and frozen.number != self._known_frozen:
            self.send(messages.encode_frozen(frozen))
            self._known_frozen = frozen.number
        self.send(messages.encode_job(submission.job))

    def drop(self, buffer: int) -> bool:
        """Let the process give back the memory of *buffer* after its last step in it. Return whether it knows it."""
        if buffer not in self._known_buffers:
            return False
        self._known_buffers.discard(buffer)
        with contextlib.suppress(OSError):  # it has died, or is about to
            self.send({"drop_buffer": buffer})
        return True

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send one message. Raises :exc:`OSError` if the process has died, or is about to."""
        assert self._channel is not None
        assert self._process is not None
        try:
            self._channel.send(message, fd)
        except OSError:
            if not self._is_closed:  # a process that was let go may still be pushing
                self._process.kill()
            raise

    def close(self) -> None:
        """
        Close the socket, and return when no more messages are received. The process finishes what it holds.

        A subscriber that blocks is waited for, but not for longer than :data:`DEAF_S`.
        """
        self._is_closed = True
        if self._channel is not None:
            self._channel.shut_down()
            # wait: DEAF_S; a warning says that a subscriber blocks
            if not self._is_deaf.wait(DEAF_S):
                logger.warning("a subscriber has not returned for %.0f s; it must not block", DEAF_S)

    def _listen(self, channel: Channel, process: subprocess.Popen[bytes]) -> None:
        """Receive until the process ends, then reap it. One that outlives the session must leave no zombie either."""
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    message, _ = channel.receive()
                    if "frozen" in message:
                        self._known_frozen = message["frozen"]
                    self._on_message(message)
        finally:
            channel.close()
            self._is_deaf.set()
        # wait: until the pusher has ended; a thread of its own, which waits for no one else
        process.wait()
        self._on_end(self)

    def close_in_child(self) -> None:
        """Close a forked child's copy of the socket: a child that outlives the trainer must not keep its pusher."""
        if self._channel is not None:
            self._channel.close_in_child()


_processes: Final[weakref.WeakSet[PusherProcess]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for process in _processes:
        process.close_in_child()


os.register_at_fork(after_in_child=_let_go_in_child)
