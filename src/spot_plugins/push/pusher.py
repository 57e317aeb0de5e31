"""The trainer's side of its pusher: the process that runs, and the ledger of what it was handed."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from .. import events
from ..errors import ConfigError, StoreError
from ..events import Event, EventBus
from . import messages
from .file_way import FileWay
from .ledger import MAX_TRIES, Ledger, Lent, Submission
from .lifecycle import StepState
from .log_way import LogWay
from .messages import KeepRequest, PruneRequest, PushJob, PushSettings
from .process import PusherProcess
from .wishes import Wishes

logger = logging.getLogger(__name__)

PROOF_S: Final = 120.0
"""Longest wait in seconds for one proof. Each request of a proof has a limit of its own, unless the user removed it."""

_NO_START: Final = "the pusher process does not start"
_PROBE: Final = "probe"
_POLL_S: Final = 0.02


class Pusher:
    """
    Hands staged steps to the pusher process and knows what became of them.

    Before the attempt is claimed, :meth:`prove` lets the process prove the store. :meth:`begin` follows.

    If the process dies (out of memory, say), the thread that receives its messages gives the newest step that it had to
    a fresh process, once. Older steps are abandoned. If it had none, the next :meth:`submit` starts a process, or that
    thread does if there is a file to keep. Events are emitted on the same thread.

    Args:
        settings: Given to every process. The attempt is 0 if :meth:`begin` gives it.
        bus: Gets the events.
    """

    def __init__(self, settings: PushSettings, bus: EventBus) -> None:
        self._settings = settings
        self._bus = bus
        self.ledger = Ledger()
        """Record of the steps and of the buffers that they need."""
        self._sending = threading.Lock()  # the process is started, and sent to, by one thread at a time
        self._process: PusherProcess | None = None
        self._directory = _current_directory()  # also of a later process: the program may change its directory
        self._proofs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._is_closed = False
        self.wishes = Wishes()
        """The wishes to keep, release and prune steps that have no answer yet."""
        self.log_way = LogWay(self._sending, lambda: self._process)
        """The way of the event log to the process."""
        self.file_way = FileWay(self._sending, self._reach_process)
        """The way of a shared file to the process."""
        self.is_finished = False
        """True if the training has ended and its end is stored. Then the process removes default local copies."""

    def start(self) -> None:
        """Start the process and return at once. It imports for a while. If it does not start, :meth:`prove` raises."""
        with self._sending, contextlib.suppress(OSError):
            self._reach_process()

    def prove(self, wait: Callable[[float], None]) -> float | None:
        """
        Let the process put, get, list and delete an object in the store, once. It is started if it does not run.

        Args:
            wait: Waits for a number of seconds. It may raise, to end the wait for the answer.

        Returns:
            Bytes per second of a put of the process. None if that is unknown.

        Raises:
            ConfigError: The store cannot be used by the process, or the machine has no room for the process.
            StoreError: The store refuses, or does not answer.
        """
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._sending:
            self._proofs = answers
            try:
                process = self._reach_process()
            except OSError as error:
                raise ConfigError(
                    f"{_NO_START}: {error}. Allow this machine more processes, memory or open files"
                ) from error
            with contextlib.suppress(OSError):  # it is not reachable then
                process.send({"prove": True})
        match _await_proof(answers, process, wait):
            case {"ConfigError": [text]}:
                raise ConfigError(text)
            case {"StoreError": fields}:
                raise StoreError(*fields)
            case {"put_bytes_per_s": float(speed)}:
                return speed
        return None

    def begin(self, attempt: int) -> None:
        """Give the number of the attempt, which is claimed now, to this process and to later ones."""
        with self._sending:
            self._settings = replace(self._settings, attempt=attempt)
            if (process := self._process) is not None:
                with contextlib.suppress(OSError):  # the next process gets it
                    process.send({"attempt": attempt})

    @property
    def pid(self) -> int | None:
        """Process id of the pusher. None before the first start, and from a noticed death until the next start."""
        process = self._process
        return None if process is None else process.pid

    def announce(self, step: int, buffers: Iterable[int]) -> None:
        """Hold *buffers*, because *step* is being copied into them. :meth:`submit` or :meth:`abandon` follows."""
        self.ledger.announce(step, buffers)

    def submit(self, job: PushJob, buffers: Mapping[int, Lent]) -> None:
        """
        Hand over one staged step, which lies in *buffers*, by number. Never waits for disk or network.

        The memory must stay as it is, and open, until the buffers are released or given to :meth:`forget_buffer`.
        """
        self.ledger.accept(job, buffers)
        with self._sending:
            self.file_way.saved()
            failure = self._hand_over(job.step)
        if failure is not None:
            self.abandon(job.step, failure)

    def finish_share(self, job: PushJob, number: int, buffer: Lent) -> None:
        """
        Hand over the share of another rank, which lies in *buffer*. The ledger gets the outcome.

        Raises:
            StoreError: There is no pusher process.
        """
        assert job.of_rank is not None
        with self._sending:
            try:
                process = self._reach_process()
            except OSError as error:
                raise StoreError("put", "", f"{_NO_START}: {error}") from error
            self.ledger.other_shares.begin(job.step, job.of_rank, process)
            with contextlib.suppress(OSError):  # the thread that receives its messages notices, too
                process.push(Submission(replace(job, buffers=(number,)), {number: buffer}, None))

    def abandon(self, step: int, reason: str) -> None:
        """Give up *step*, which was announced, because of *reason*."""
        self.ledger.abandon(step)
        self._emit(events.SaveAbandoned(step=step, reason=reason))

    def forget_buffer(self, buffer: int) -> bool:
        """
        Let the process give back the memory of *buffer*, which is closed next.

        A step in it that the process loses is abandoned.

        Returns:
            Whether the process maps it. If it does not, the caller gives the memory back.
        """
        with self._sending:  # no other process is being given it at this moment
            self.ledger.forget(buffer)
            return (process := self._process) is not None and process.drop(buffer)

    def hurry(self) -> None:
        """Give this process, and any later one, normal priority, because the machine will be taken."""
        with self._sending:
            self._settings = replace(self._settings, hurries=True)
            if (process := self._process) is not None:
                with contextlib.suppress(OSError):
                    process.send({"hurry": True})

    def ask(self, request: KeepRequest | PruneRequest) -> None:
        """
        Let the process keep or release a step, or remove old ones. Never waits for disk or network.

        An event or a message answers, see :attr:`wishes`.
        """
        with self._sending:
            try:
                process: PusherProcess | None = self._reach_process()
            except OSError as error:
                logger.warning("%s: %s", _NO_START, error)
                process = None
            self.wishes.add(request)
            if process is not None:
                with contextlib.suppress(OSError):  # it goes to the next process
                    process.send(messages.encode_wish(request))

    def has_ended(self, step: int) -> bool:
        """Return whether *step* is committed or abandoned on this rank. So it is if it was never submitted."""
        return self.ledger.has_ended(step)

    def wait_ended(self, step: int, deadline: float) -> StepState | None:
        """
        Wait until *step* is committed or abandoned on this rank, or until *deadline* (monotonic).

        Returns:
            The last state, None for a step that was never submitted.
        """
        return self.ledger.wait_ended(step, deadline)

    def is_abandoned(self, step: int) -> bool:
        """Return whether *step* was submitted and will not be committed."""
        return self.ledger.wait_ended(step, 0.0) is StepState.ABANDONED

    def close(self) -> None:
        """Close the way to the process, and return at once. It finishes what it holds and ends by itself."""
        self._is_closed = True
        self.file_way.close()
        if (process := self._process) is not None:
            if self.is_finished:
                with contextlib.suppress(OSError):  # what is left is swept after some days
                    process.send({"finished": True})
            process.close()

    def _hand_over(self, step: int) -> str | None:
        """Send *step* to the process, and return the reason if it cannot be sent. Call with the lock held."""
        if self._is_closed:
            return "the session is closed"
        for _ in range(MAX_TRIES):
            try:
                process = self._reach_process()
            except OSError as error:
                logger.warning("%s: %s", _NO_START, error)
                continue
            if (submission := self.ledger.hand_over(step, process)) is None:
                return "the session is being closed, so the memory of the step is no longer there"
            try:
                process.push(submission)
            except OSError as error:  # the thread that receives its messages notices, too, and sees to the step
                logger.warning("the pusher process cannot be reached, so another one takes over: %s", error)
            return None
        return _NO_START

    def _reach_process(self) -> PusherProcess:
        """Return the process, a fresh one if none runs. Call with the lock held."""
        process = self._process
        if process is None or not process.is_reachable:
            process = PusherProcess(self._settings, self._directory, self._on_message, self._on_end)
            process.start()
            self._process = process
            with contextlib.suppress(OSError):
                self.file_way.send_to(process)
                for request in self.wishes.again():
                    process.send(messages.encode_wish(request))
            if self._is_closed:  # meanwhile, and close() has not seen this process
                process.close()
        return process

    def _on_message(self, body: dict[str, Any]) -> None:
        match body:
            case {"released": list(buffers)}:
                self.ledger.release(buffers)
            case {"proof": dict(proof)}:
                self._proofs.put(proof)
            case {"frozen": int()}:
                self.ledger.store_frozen(messages.decode_frozen(body))
            case {"pruned": True}:
                self.wishes.on_pruned()
            case {"file_failed": str(reason)}:
                logger.info("the local disk takes no fingerprints of steps: %s", reason)
            case {"log_failed": str(reason)}:
                logger.warning("the store takes no event log, so a report will lack this attempt: %s", reason)
            case _:
                self.log_way.received = event = messages.decode_event(body)
                self.ledger.on_event(event)
                self.wishes.on_event(event)
                self.ledger.other_shares.on_event(event)
                self._emit(event)

    def _emit(self, event: Event) -> None:
        if isinstance(event, events.SaveAbandoned):
            logger.warning("step %s will not be committed: %s", event.step, event.reason)
        if isinstance(event, events.StoreDamaged):
            then = "It was stored again" if event.is_repaired else "The next save stores it again, if it can"
            logger.warning("damage in the store: %s %s. %s", event.key, event.reason, then)
        self._bus.emit(event)

    def _on_end(self, process: PusherProcess) -> None:
        if self._is_closed:
            return
        logger.error("the pusher process ended with code %s", process.exit_code)
        reason = f"the pusher process ended with code {process.exit_code}"
        with self._sending:
            if self._process is process:
                self._process = None
            lost, unanswered = self.ledger.lose(process), self.wishes.lose(reason)
            self.ledger.other_shares.lose(process)
            failure = None
            if lost.again is not None:
                logger.warning("step %s goes to another pusher process", lost.again)
                failure = self._hand_over(lost.again)
            if self._process is None and (self.wishes or self.file_way.needs_another()):
                with contextlib.suppress(OSError):  # the next process gets them
                    self._reach_process()
        for event in unanswered:
            self._emit(event)
        for step in lost.abandoned:
            self._emit(events.SaveAbandoned(step=step, reason=reason))
        self.ledger.release(lost.buffers)
        if lost.again is not None and failure is not None:
            self.abandon(lost.again, f"{reason}; {failure}")


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed; a process inherits it all the same
        return None


def _await_proof(
    answers: queue.SimpleQueue[dict[str, Any]], process: PusherProcess, wait: Callable[[float], None]
) -> dict[str, Any]:
    deadline = time.monotonic() + PROOF_S
    while time.monotonic() < deadline:
        is_reachable = process.is_reachable
        with contextlib.suppress(queue.Empty):
            # wait: _POLL_S; it looks again for a notice and for the end of the process, until PROOF_S
            return answers.get(timeout=_POLL_S)
        if not is_reachable:
            raise StoreError("put", _PROBE, "the pusher process ended while it proved the store")
        # wait: at once; it raises if there is a notice
        wait(0.0)
    raise StoreError("put", _PROBE, f"the pusher process got no answer within {PROOF_S:.0f} s")
