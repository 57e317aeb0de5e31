"""The thread of a training process that polls all notice sources."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Final

from ..machine.threads import start_thread
from .base import Acknowledging, Announcement, NoticeSource

logger = logging.getLogger(__name__)

MIN_GAP_S: Final = 1.0
"""Shortest time in seconds to a poll that an answer triggers, because a server may answer a hanging request at once."""

MAX_GAP_S: Final = 10.0
"""Longest time in seconds between two polls of a source that fails."""

TOLD_AFTER_S: Final = 60.0
"""Seconds without an answer after which the user is told that a source cannot be asked."""

CLOSE_WAIT_S: Final = 0.5
"""Longest wait in seconds for the thread. If it is in a request without an answer, it ends by itself after that."""


@dataclass(slots=True, eq=False)
class _PolledSource:
    source: NoticeSource
    polled_at: float = -MAX_GAP_S
    next_at: float = 0.0
    num_failed: int = 0
    answered_at: float = field(default_factory=time.monotonic)
    is_failure_logged: bool = False
    is_silence_told: bool = False


class NoticePoller:
    """
    Polls all notice sources from the thread ``spot-notices``, each at its own interval.

    After a hard announcement, a source is not polled again. A source that fails is polled less often, and polling never
    ends because of it. Its first failure is logged at debug level, because most pass. One warning says so if it has not
    answered for :data:`TOLD_AFTER_S`.

    Args:
        sources: The notice sources to poll.
        on_announcement: Called with each announcement, on the thread ``spot-notices``.
    """

    def __init__(self, sources: Sequence[NoticeSource], on_announcement: Callable[[Announcement], None]) -> None:
        self._polled = [_PolledSource(source) for source in sources]
        self._on_announcement = on_announcement
        self._announced: list[NoticeSource] = []
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._read_fd = self._write_fd = -1

    def start(self) -> None:
        """Start the thread, unless there is nothing to poll."""
        if self._polled and self._thread is None:
            self._read_fd, self._write_fd = os.pipe()
            thread = threading.Thread(target=self._run, name="spot-notices", daemon=True)
            self._thread = start_thread(thread)

    def acknowledge(self) -> None:
        """Acknowledge the announced end to providers that wait for that. It takes seconds at most and never raises."""
        for source in self._announced:
            if isinstance(source, Acknowledging):
                try:
                    source.acknowledge()
                except Exception as error:  # noqa: BLE001 - the machine is only taken a little later
                    logger.warning(
                        "the notice of %s cannot be acknowledged, so the machine is taken a little later: %s",
                        source.name,
                        error,
                    )

    def close(self) -> None:
        """Stop polling. It does nothing if the thread never started, or on a second call."""
        if self._thread is None or self._closed.is_set():
            return
        self._closed.set()
        os.write(self._write_fd, b"\0")
        if self._thread is threading.current_thread():
            return
        # wait: CLOSE_WAIT_S; the thread ends by itself after its request
        self._thread.join(CLOSE_WAIT_S)
        if not self._thread.is_alive():
            os.close(self._read_fd)
            os.close(self._write_fd)

    def _run(self) -> None:
        try:
            while self._polled and not self._closed.is_set():
                for each in list(self._polled):
                    if not self._closed.is_set() and each.next_at <= time.monotonic():
                        self._poll(each)
                self._wait()
        finally:
            for each in self._polled:
                each.source.close()

    def _poll(self, each: _PolledSource) -> None:
        each.polled_at = time.monotonic()
        announcement = None
        try:
            announcement = each.source.poll()
            each.num_failed = 0
            each.answered_at = time.monotonic()
        except Exception as error:  # noqa: BLE001 - whatever a server answers, training continues
            each.num_failed += 1
            each.source.close()
            _tell(each, error)
        gap_s = each.source.every_s
        if each.num_failed:
            gap_s = max(gap_s, min(gap_s * 2 ** min(each.num_failed, 10), MAX_GAP_S))
        each.next_at = time.monotonic() + gap_s
        if announcement is not None and not self._closed.is_set():
            if announcement.kind == "hard":
                self._polled.remove(each)
                self._announced.append(each.source)
                each.source.close()
            self._on_announcement(announcement)

    def _wait(self) -> None:
        """Wait until a source is due, an answer arrives, or the poller is closed."""
        if not self._polled:
            return
        now = time.monotonic()
        until = min(each.next_at for each in self._polled)
        awaited = {}
        for each in self._polled:
            if (connection := each.source.awaited) is None:
                continue
            if (may_at := each.polled_at + MIN_GAP_S) <= now:
                awaited[connection] = each
            else:
                until = min(until, may_at)
        # wait: the time of the next poll; the source is polled
        for ready in wait([self._read_fd, *awaited], max(0.0, until - now)):
            if isinstance(ready, socket.socket):
                awaited[ready].next_at = 0.0


def _tell(each: _PolledSource, error: Exception) -> None:
    if not each.is_failure_logged:
        each.is_failure_logged = True
        logger.debug("notices of %s cannot be read: %s: %s", each.source.name, type(error).__name__, error)
    silent_s = time.monotonic() - each.answered_at
    if silent_s >= TOLD_AFTER_S and not each.is_silence_told:
        each.is_silence_told = True
        logger.warning(
            "%s has not answered for %.0f s, so its notices do not reach this training: %s. Let this process reach it, "
            "or leave it out of notice_sources",
            each.source.name,
            silent_s,
            error,
        )
