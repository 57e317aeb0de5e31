"""Segments of the event log: objects of limited size, put to a store by a thread of the pusher process."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..errors import SpotError
from ..format.keys import EVENTS_PREFIX, SegmentKey, parse_segment_key
from ..store import ObjectStore
from .records import FORMAT

SEGMENT_BYTES: Final = 64 * 1024
"""Bytes of records in a segment. The open segment is put whole each time, because stores cannot append."""

MAX_SEGMENTS: Final = 256
"""Segments of one rank in one attempt, 16 MiB in all. After that the last one begins anew, and its records are lost."""

MAX_WAITING: Final = 4000
"""Records that wait for a store that does not take them. The oldest ones are dropped and counted."""

NUM_FAILURES: Final = 3
"""Failed puts in a row after which the failure is told. A store that was away for a moment has lost nothing."""

KEPT_ATTEMPTS: Final = 4
"""Attempts of which the local disk keeps the log."""


class _Failures:
    """Failed puts in a row. The reason is passed to *tell* once, after :data:`NUM_FAILURES` of them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._count = 0
        self._is_told = False

    def add(self, reason: str) -> None:
        self._count += 1
        if self._count == NUM_FAILURES and not self._is_told:
            self._is_told = True
            self._tell(reason)

    def end(self) -> None:
        self._count = 0


class SegmentWriter:
    """
    Puts the records of one rank to one store. It never raises, and nobody waits for its store.

    The open segment is put whole each time that a record asks for it, until it is full. If a put fails, the next such
    record tries again.

    Args:
        store: The store.
        attempt: Number of the attempt.
        rank: The rank.
        header: Returns the facts for the first line of each segment. Called on the thread of the writer.
        on_failure: Called once with the reason when :data:`NUM_FAILURES` puts in a row have failed, on the thread of
            the writer.
        is_local: Whether the store is the local disk, which keeps only the log of the newest attempts.
    """

    def __init__(
        self,
        store: ObjectStore,
        attempt: int,
        rank: int,
        header: Callable[[], dict[str, Any]],
        on_failure: Callable[[str], None] = lambda reason: None,
        *,
        is_local: bool = False,
    ) -> None:
        self._store = store
        self._key = SegmentKey(attempt, rank, 0)
        self._header = header
        self._failures = _Failures(on_failure)
        self._is_local = is_local
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._num_dropped = 0
        self._is_due = False
        self._is_closed = False
        self._lines: list[bytes] | None = None  # the records of the open segment; None before its number is known
        self._thread = threading.Thread(target=self._run, name="spot-segment", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, line: bytes, *, puts: bool) -> None:
        """Add a record, and put all that wait if *puts*. Returns at once. Callable from any thread."""
        with self._changed:
            self._waiting.append(line)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._num_dropped += 1
            if puts:
                self._is_due = True
                self._changed.notify_all()

    def close(self, wait_s: float) -> None:
        """Put what waits, and end. A store that does not answer is waited for at most *wait_s* seconds."""
        with self._changed:
            self._is_closed = self._is_due = True
            self._changed.notify_all()
        # wait: wait_s of the caller; the last records are lost
        self._thread.join(wait_s)

    def _run(self) -> None:
        is_closed = False
        while not is_closed:
            with self._changed:
                # wait: until a record is to be put or the log ends; a thread that nobody waits for without a limit
                self._changed.wait_for(lambda: self._is_due)
                is_closed, self._is_due = self._is_closed, False
            try:
                self._put_waiting()
                self._failures.end()
            except SpotError as error:
                self._failures.add(str(error))
            except Exception as error:  # noqa: BLE001 - a bug here must neither end the pusher nor be silent
                self._failures.add(f"unexpected {error!r}")

    def _put_waiting(self) -> None:
        if self._lines is None:
            self._find_number()
            self._lines = []
        while self._waiting:  # only this thread takes from it, but for records that are dropped
            if sum(map(len, self._lines)) + len(self._waiting[0]) > SEGMENT_BYTES:
                self._put(self._lines)
                self._begin_next(self._lines)
            with self._changed:
                self._lines.append(self._waiting.popleft())
        self._put(self._lines)

    def _put(self, lines: list[bytes]) -> None:
        key = self._key
        facts = {"format": FORMAT, "attempt": key.attempt, "rank": key.rank, "num_dropped": self._num_dropped}
        first = json.dumps({**facts, **self._header()}, separators=(",", ":")).encode() + b"\n"
        self._store.put(key.key, b"".join((first, *lines)))

    def _begin_next(self, lines: list[bytes]) -> None:
        """Begin the next segment, or the last one anew."""
        if self._key.number + 1 < MAX_SEGMENTS:
            self._key = self._key._replace(number=self._key.number + 1)
        else:
            with self._changed:
                self._num_dropped += len(lines)
        lines.clear()

    def _find_number(self) -> None:
        """Continue after the segments of an earlier pusher process of this attempt. Tidy the local disk."""
        prefix = EVENTS_PREFIX if self._is_local else self._key.prefix
        found = [key for each in self._store.keys(prefix) if (key := parse_segment_key(each)) is not None]
        own = [key for key in found if key.rank == self._key.rank]
        last = max((key.number for key in own if key.attempt == self._key.attempt), default=-1)
        self._key = self._key._replace(number=min(last + 1, MAX_SEGMENTS - 1))
        for key in own if self._is_local else []:
            if key.attempt <= self._key.attempt - KEPT_ATTEMPTS:
                self._store.delete(key.key)
