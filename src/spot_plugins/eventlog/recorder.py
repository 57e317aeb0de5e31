"""The recorder: passes the events of one rank, and heartbeats, from the trainer to its pusher process."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from ..clock import wall_time
from ..events import Event
from ..machine.threads import start_thread
from .records import Dropped, Ended, Entry, Heartbeat, Record, Started, TrainingBegan, body_of

logger = logging.getLogger(__name__)

BEAT_S: Final = 2.0
"""Seconds from one heartbeat to the next. The pusher process keeps the newest one, for a trainer that is killed."""

HEARTBEAT_S: Final = 30.0
"""Seconds from one heartbeat in the log to the next. So many may be missing from the log of a machine that is gone."""

MAX_WAITING: Final = 2000
"""Records that wait for the pusher process. More are dropped and counted."""

CLOSE_S: Final = 2.0
"""Longest wait in seconds for the last records at the end of a session."""


class Way(Protocol):
    """The way to the pusher process, as the recorder uses it."""

    def send(self, records: list[dict[str, Any]]) -> bool:
        """Send *records* to the process. Return whether they were sent."""
        ...

    def is_from_process(self, event: Event) -> bool:
        """Return whether *event* came from the process, which has recorded it."""
        ...


class Recorder:
    """
    Records what happens in the trainer of one rank.

    The thread that emits an event only puts it into a queue of limited size. The thread ``spot-log`` does the rest. It
    waits for no device, for no store and for no disk. A failure of it is logged once, and ends it.

    Args:
        way: The way to the pusher process.
        reached: Returns the last step that is done. Called on the thread of the recorder.
        is_finished: Returns whether the training has ended and its end is stored.
    """

    _num_started: ClassVar[int] = 0
    """Number of recorders of this process so far."""

    def __init__(self, way: Way, reached: Callable[[], int | None], is_finished: Callable[[], bool]) -> None:
        self._way = way
        self._reached = reached
        self._is_finished = is_finished
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._num_dropped = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="spot-log", daemon=True)
        Recorder._num_started += 1
        self.process_s = _process_age_s() if Recorder._num_started == 1 else None
        """Seconds since the process began. None if that is unknown, or if the process had a session before."""

    def open(self) -> None:
        """Begin. The first record says how long the process has run."""
        self._add(Started(process_s=self.process_s))
        start_thread(self._thread)

    def on_event(self, event: Event) -> None:
        """Record *event*, unless the pusher process has done so. On any thread."""
        if not self._way.is_from_process(event):
            self._add(event)

    def begin(self, step: int | None) -> None:
        """Record that training begins after *step*."""
        self._add(TrainingBegan(step=step))

    def fail(self, error: BaseException) -> None:
        """Remember the class of the *error* that ends the training. Its text may hold anything, so it is left out."""
        self._error = type(error).__name__

    def end(self) -> Ended:
        """Return how the session ends."""
        return Ended(step=self._reached(), is_finished=self._is_finished(), error=self._error)

    def close(self) -> None:
        """Record the end, and pass on what waits."""
        self._add(self.end())
        self._queue.put(None)
        # wait: CLOSE_S; the last records are lost
        self._thread.join(CLOSE_S)

    def _add(self, entry: Entry) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put(Record(wall_time(), time.monotonic(), entry))
        else:
            self._drop()

    def _run(self) -> None:
        try:
            self._pass_on()
        except Exception:  # the log must not end a training
            logger.exception("the event log of this process ends here; training continues")

    def _pass_on(self) -> None:
        now = time.monotonic()
        beat_due, log_due = now + BEAT_S, now + HEARTBEAT_S
        while True:
            try:
                # wait: BEAT_S; a heartbeat is sent
                record = self._queue.get(timeout=max(0.0, beat_due - time.monotonic()))
            except queue.Empty:
                now = time.monotonic()
                beat_due = now + BEAT_S
                record = Record(wall_time(), now, Heartbeat(step=self._reached()))
                if now < log_due:
                    self._way.send([{**body_of(record), "is_brief": True}])  # the next one is as good
                    continue
                log_due = now + HEARTBEAT_S
            if record is not None:
                self._waiting.append(body_of(record))
            self._send()
            if record is None:
                return

    def _send(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._drop()
        bodies = list(self._waiting)
        if num_dropped := self._num_dropped:
            bodies.append(body_of(Record(wall_time(), time.monotonic(), Dropped(num_records=num_dropped))))
        if bodies and self._way.send(bodies):
            self._waiting.clear()
            with self._lock:
                self._num_dropped -= num_dropped

    def _drop(self) -> None:
        with self._lock:
            self._num_dropped += 1


def _process_age_s() -> float | None:
    """Return the seconds since this process began, or None if the system does not say."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, age_s)
