"""The training process' side of its pusher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import events
from ..events import Event
from ..lifecycle import StepLifecycle, StepState
from . import messages
from .messages import PushJob, PushSettings
from .speed import Speeds

logger = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])

_started: list[subprocess.Popen[bytes]] = []
"""Keeps the handles of pushers that outlive their session: dropping one of a live process is a warning."""


class Pusher:
    """
    Starts the pusher process, hands it staged steps and knows what became of them.

    A pusher that dies (out of memory, say) loses what it had; the next :meth:`submit` starts another.
    Events come on a thread of this object.
    """

    def __init__(self, settings: PushSettings, tell: Callable[[Event], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._changed = threading.Condition()
        self._steps: dict[int, StepLifecycle] = {}
        self._held: set[int] = set()
        self._failing = False
        self._closed = False
        self._superseded = False
        self._submitting: int | None = None  # who submits it sees to it, should the process die meanwhile
        self._sock: socket.socket | None = None
        self._deaf = threading.Event()
        self._known: set[int] = set()
        self.speeds = Speeds()
        """How fast the disk and the store have lately taken this rank's blobs; changes with the steps."""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        _pushers.add(self)

    def start(self) -> socket.socket:
        """
        Start the process, unless it runs. Returns the way to it at once; it is ready in a fraction of a second.

        Raises:
            OSError: The machine has no room for another process.
        """
        if (sock := self._sock) is not None:
            return sock
        ours, theirs = socket.socketpair()
        # Its own session: a signal to the job's process group must not end it. Its folder: "-m" puts the
        # current one first in the module path, and a user's "random.py" there must not shadow Python's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # inherited: see main()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "spot_plugins.push.worker", str(theirs.fileno())],
                cwd=_PACKAGE_PARENT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a pipe held by a pusher that outlives us would hang whoever reads it
            )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        _started[:] = [process for process in _started if process.poll() is None] + [self._process]
        self._known = set()
        with contextlib.suppress(OSError):  # it ended at once; who reads will see
            messages.send(ours, asdict(self._settings))
        self._sock = ours
        self._deaf = threading.Event()
        self._reader = threading.Thread(
            target=self._listen, args=(ours, self._process, self._deaf), name="spot-pusher", daemon=True
        )
        self._reader.start()
        return ours

    @property
    def pid(self) -> int | None:
        """Process id of the pusher, None before :meth:`start`."""
        return None if self._process is None else self._process.pid

    @property
    def superseded(self) -> bool:
        """Whether a newer attempt has taken over the run: nothing will be committed any more."""
        return self._superseded

    def holds(self, buffer: int) -> bool:
        """Whether the pusher still reads from *buffer*."""
        with self._changed:
            return buffer in self._held

    @property
    def busy(self) -> bool:
        """Whether a step is on its way and the store takes it. A push that only fails does not count."""
        with self._changed:
            return bool(self._held) and not self._failing

    def submit(self, job: PushJob, fd: int, num_bytes: int) -> None:
        """Hand over one staged step in the buffer *fd* of *num_bytes*. Never waits for disk or network."""
        for _ in range(2):  # the second time with a fresh process, should this one have died
            job = replace(job, again=job.step in self._steps)
            with self._changed:
                self._steps[job.step] = StepLifecycle(job.step, StepState.PUSHING)
                self._held.add(job.buffer)
                self._submitting = job.step
            try:
                sock = self.start()
                if job.buffer not in self._known:
                    messages.send(sock, {"buffer": job.buffer, "num_bytes": num_bytes}, fd)
                    self._known.add(job.buffer)
                messages.send(sock, messages.encode_job(job))
            except OSError as error:
                logger.warning("the pusher process cannot be reached: %s", error)
                sock = None
            with self._changed:
                if (
                    sock is not None and self._sock is sock
                ):  # else it has died since, and the reader passed over the step
                    self._submitting = None
                    return
            if self._reader is not None:
                self._reader.join()
        with self._changed:
            self._submitting = None
            self._held.discard(job.buffer)
        self._abandon(job.step, "the pusher process does not start")

    def wait_released(self, buffers: set[int], deadline: float) -> bool:
        """Wait until the pusher holds no longer all of *buffers*, or until *deadline*. Return whether it does not."""
        with self._changed:
            left_s = max(0.0, deadline - time.monotonic())
            return self._changed.wait_for(lambda: not buffers <= self._held, timeout=left_s)

    def forget_buffer(self, buffer: int) -> None:
        """Let the pusher unmap *buffer*, which it does not hold."""
        if (sock := self._sock) is not None and buffer in self._known:
            self._known.discard(buffer)
            with contextlib.suppress(OSError):
                messages.send(sock, {"drop_buffer": buffer})

    def hurry(self) -> None:
        """The machine will be taken: give the pusher normal priority."""
        if (sock := self._sock) is not None:
            with contextlib.suppress(OSError):
                messages.send(sock, {"hurry": True})

    def wait_settled(self, step: int, deadline: float) -> StepState | None:
        """
        Wait until *step* is committed or abandoned on this rank, or until *deadline* (monotonic).

        Returns:
            The last state, None for a step that was never submitted.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.settled(step), timeout=max(0.0, deadline - time.monotonic()))
            return self._steps[step].state if step in self._steps else None

    def abandoned(self, step: int) -> bool:
        """Whether *step* was submitted and will not be committed."""
        with self._changed:
            return step in self._steps and self._steps[step].state is StepState.ABANDONED

    def settled(self, step: int) -> bool:
        """Whether nothing will happen to *step* any more; so too if it was never submitted."""
        with self._changed:
            return step not in self._steps or self._steps[step].ended

    def close(self) -> None:
        """Let go of the pusher. It finishes what it holds and ends by itself; this returns at once."""
        self._closed = True
        if (sock := self._sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._deaf.wait()

    def _listen(self, sock: socket.socket, process: subprocess.Popen[bytes], deaf: threading.Event) -> None:
        """Hear the process to its end, then reap it: also one that outlives the session must leave no zombie."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(messages.receive(sock)[0])
        sock.close()
        deaf.set()
        process.wait()
        if self._closed:
            return
        logger.error("the pusher process ended with code %s", process.returncode)
        with self._changed:
            self._sock = None
            self._held.clear()
            self._failing = False
            self._changed.notify_all()
            lost = [s.step for s in self._steps.values() if not s.ended and s.step != self._submitting]
        for step in lost:
            self._abandon(step, f"the pusher process ended with code {process.returncode}")

    def _abandon(self, step: int, reason: str) -> None:
        self._end(step, StepState.ABANDONED, reason)
        self._tell(events.SaveAbandoned(step=step, reason=reason))

    def _hear(self, body: dict[str, Any]) -> None:
        if "released" in body:
            with self._changed:
                self._held.discard(body["released"])
                self._failing = False
                self._changed.notify_all()
            return
        event = messages.decode_event(body)
        match event:
            case events.WrittenLocally(write_bytes_per_s=speed):
                self.speeds = replace(self.speeds, disk_bytes_per_s=speed)
            case events.Committed(step=step, put_bytes_per_s=speed):
                self.speeds = replace(self.speeds, store_bytes_per_s=speed)
                self._end(step, StepState.COMMITTED, "")
            case events.SaveAbandoned(step=step, reason=reason):
                self._end(step, StepState.ABANDONED, reason)
            case events.PushFailing():
                self._failing = True
            case events.Superseded():
                self._superseded = True
        self._tell(event)

    def _end(self, step: int, state: StepState, reason: str) -> None:
        if reason:
            logger.warning("step %s will not be committed: %s", step, reason)
        with self._changed:
            self._steps[step].move(state)
            self._changed.notify_all()


_pushers: weakref.WeakSet[Pusher] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Close a forked child's ways to pushers: a worker that outlives the trainer must not keep them waiting."""
    for pusher in _pushers:
        if (sock := pusher._sock) is not None:
            pusher._sock = None
            sock.close()


os.register_at_fork(after_in_child=_let_go_in_child)
