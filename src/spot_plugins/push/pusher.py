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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from .. import events
from ..events import EventBus
from . import messages
from .lifecycle import StepLifecycle, StepState
from .messages import PushJob, PushSettings
from .speed import Speeds

logger = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])

_started: list[subprocess.Popen[bytes]] = []
"""Keeps the handles of pushers that outlive their session: dropping one of a live process is a warning."""


class Lent(Protocol):
    """A shared buffer."""

    fd: int
    num_bytes: int


class Pusher:
    """
    Starts the pusher process, hands it staged steps and knows what became of them.

    A pusher that dies (out of memory, say) loses what it had; the next :meth:`submit` starts another.
    Events come on a thread of this object.
    """

    def __init__(self, settings: PushSettings, bus: EventBus) -> None:
        self._settings = settings
        self._bus = bus
        self._changed = threading.Condition()
        self._steps: dict[int, StepLifecycle] = {}
        self._submitted: set[int] = set()
        self._held: dict[int, int] = {}  # buffers, and the steps in them
        self._sending = threading.Lock()  # the process is started, and spoken to, by one thread at a time
        self._failing = False
        self._closed = False
        self._superseded = False
        self._submitting: int | None = None  # who submits it sees to it, should the process die meanwhile
        self._sock: socket.socket | None = None
        self._deaf = threading.Event()
        self._known: set[int] = set()
        self.speeds = Speeds()
        """How fast the disk and the store have lately taken this rank's blobs; changes with the steps."""
        self._known_frozen: int | None = None
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
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, messages.SIGNALS)  # inherited: see main()
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

    def knows_frozen(self, number: int) -> bool:
        """Whether the process has stored the set of frozen blobs of that *number*, so that a job may refer to it."""
        with self._changed:
            return number == self._known_frozen

    def announce(self, step: int, buffers: Iterable[int]) -> None:
        """Say that *step* is being copied into *buffers*: :meth:`submit` or :meth:`abandon` will follow."""
        with self._changed:
            self._steps[step] = StepLifecycle(step)
            self._held |= dict.fromkeys(buffers, step)

    def submit(self, job: PushJob, buffers: Mapping[int, Lent]) -> None:
        """Hand over one staged step, which lies in *buffers*, by number. Never waits for disk or network."""
        reason = "the pusher process does not start"
        for _ in range(2):  # the second time with a fresh process, should this one have died
            with self._changed:
                job = replace(job, again=job.step in self._submitted)
                self._submitted.add(job.step)
                self._steps[job.step] = StepLifecycle(job.step, StepState.PUSHING)
                self._held |= dict.fromkeys(buffers, job.step)
                self._submitting = job.step
            try:
                with self._sending:
                    sock = self.start()
                    if self._refers_to_lost(job):
                        reason = "the pusher process that knew its frozen weights has ended"
                        break
                    for number in buffers.keys() - self._known:
                        lent = buffers[number]
                        messages.send(sock, {"buffer": number, "num_bytes": lent.num_bytes}, lent.fd)
                        self._known.add(number)
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
        self.abandon(job.step, reason)

    def _refers_to_lost(self, job: PushJob) -> bool:
        """Whether *job* needs frozen blobs that the process, a new one, has never heard of."""
        brings_them = any(blob.is_frozen for blob in job.blobs)
        return job.frozen is not None and not brings_them and not self.knows_frozen(job.frozen)

    def abandon(self, step: int, reason: str) -> None:
        """Say that *step*, which was announced, will not come, because of *reason*."""
        self._release(step)
        self._abandon(step, reason)

    def wait_released(self, buffers: set[int], deadline: float) -> bool:
        """Wait until the pusher holds no longer all of *buffers*, or until *deadline*. Return whether it does not."""
        with self._changed:
            left_s = max(0.0, deadline - time.monotonic())
            return self._changed.wait_for(lambda: not buffers <= self._held.keys(), timeout=left_s)

    def forget_buffer(self, buffer: int) -> None:
        """Let the pusher unmap *buffer*, which it does not hold."""
        if (sock := self._sock) is not None and buffer in self._known:
            self._known.discard(buffer)
            with contextlib.suppress(OSError), self._sending:
                messages.send(sock, {"drop_buffer": buffer})

    def hurry(self) -> None:
        """The machine will be taken: give the pusher normal priority."""
        if (sock := self._sock) is not None:
            with contextlib.suppress(OSError), self._sending:
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
            self._known_frozen = None
            # What is still being copied is not lost: its submission starts another process.
            copied = {step for step in self._held.values() if self._steps[step].state is StepState.STAGING}
            self._held = {buffer: step for buffer, step in self._held.items() if step in copied}
            self._failing = False
            self._changed.notify_all()
            pushed = [each.step for each in self._steps.values() if each.state is StepState.PUSHING]
            lost = [step for step in pushed if step != self._submitting]
        for step in lost:
            self._abandon(step, f"the pusher process ended with code {process.returncode}")

    def _release(self, step: int) -> None:
        with self._changed:
            self._held = {buffer: held for buffer, held in self._held.items() if held != step}
            self._changed.notify_all()

    def _abandon(self, step: int, reason: str) -> None:
        self._end(step, StepState.ABANDONED, reason)
        self._bus.emit(events.SaveAbandoned(step=step, reason=reason))

    def _hear(self, body: dict[str, Any]) -> None:
        if "released" in body:
            self._failing = False
            self._release(body["released"])
            return
        if "frozen" in body:
            with self._changed:
                self._known_frozen = body["frozen"]
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
        self._bus.emit(event)

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
