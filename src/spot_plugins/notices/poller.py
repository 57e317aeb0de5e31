"""The one thread of a process that asks all sources."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Final

from .base import Acknowledging, Announcement, NoticeSource

logger = logging.getLogger(__name__)

MIN_GAP_S: Final = 1.0
"""Shortest time from a poll to one that an answer calls for: a server may answer at once what should hang."""

MAX_GAP_S: Final = 10.0
"""Longest time between two polls of a source that fails."""

CLOSE_WAIT_S: Final = 0.5
"""Longest wait for the thread. It takes longer only within a request that is not answered, and then ends by itself."""


@dataclass(slots=True, eq=False)
class _Watched:
    source: NoticeSource
    polled_at: float = -MAX_GAP_S
    next_at: float = 0.0
    num_failed: int = 0
    told: bool = False


class NoticePoller:
    """
    Ask all *sources*, each in its own rhythm, and call *on_announcement* with what they say, from that thread.

    A source that has announced an end is not asked again. One that fails is asked less often, and never ends the
    watch; its first failure is logged, for developers only.
    """

    def __init__(self, sources: Sequence[NoticeSource], on_announcement: Callable[[Announcement], None]) -> None:
        self._watched = [_Watched(source) for source in sources]
        self._on_announcement = on_announcement
        self._announced: list[NoticeSource] = []
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._read_fd = self._write_fd = -1

    def start(self) -> None:
        """Begin, if there is anything to ask."""
        if self._watched and self._thread is None:
            self._read_fd, self._write_fd = os.pipe()
            self._thread = threading.Thread(target=self._run, name="spot-notices", daemon=True)
            self._thread.start()

    def acknowledge(self) -> None:
        """Say to whom it matters that nothing is left to do here. Takes seconds at most, and never fails."""
        for source in self._announced:
            if isinstance(source, Acknowledging):
                try:
                    source.acknowledge()
                except Exception as error:  # noqa: BLE001 - the machine only lives a little longer
                    logger.warning("%s cannot be told that all is saved: %s", source.name, error)

    def close(self) -> None:
        """Stop asking. Harmless if it never began, or twice."""
        if self._thread is None or self._closed.is_set():
            return
        self._closed.set()
        os.write(self._write_fd, b"\0")
        if self._thread is threading.current_thread():
            return
        self._thread.join(CLOSE_WAIT_S)
        if not self._thread.is_alive():
            os.close(self._read_fd)
            os.close(self._write_fd)

    def _run(self) -> None:
        try:
            while self._watched and not self._closed.is_set():
                for each in list(self._watched):
                    if not self._closed.is_set() and each.next_at <= time.monotonic():
                        self._poll(each)
                self._wait()
        finally:
            for each in self._watched:
                each.source.close()

    def _poll(self, each: _Watched) -> None:
        each.polled_at = time.monotonic()
        announcement = None
        try:
            announcement = each.source.poll()
            each.num_failed = 0
        except Exception as error:  # noqa: BLE001 - whatever a server answers, training goes on
            each.num_failed += 1
            each.source.close()
            if not each.told:
                each.told = True
                logger.debug("notices of %s cannot be seen: %s: %s", each.source.name, type(error).__name__, error)
        gap_s = each.source.every_s
        if each.num_failed:
            gap_s = max(gap_s, min(gap_s * 2 ** min(each.num_failed, 10), MAX_GAP_S))
        each.next_at = time.monotonic() + gap_s
        if announcement is not None and not self._closed.is_set():
            if announcement.kind == "hard":
                self._watched.remove(each)
                self._announced.append(each.source)
                each.source.close()
            self._on_announcement(announcement)

    def _wait(self) -> None:
        """Wait until a source is to be asked, one has an answer, or all is over."""
        if not self._watched:
            return
        now = time.monotonic()
        until = min(each.next_at for each in self._watched)
        awaited = {}
        for each in self._watched:
            if (connection := each.source.awaited) is None:
                continue
            if (may_at := each.polled_at + MIN_GAP_S) <= now:
                awaited[connection] = each
            else:
                until = min(until, may_at)
        for ready in wait([self._read_fd, *awaited], max(0.0, until - now)):
            if isinstance(ready, socket.socket):
                awaited[ready].next_at = 0.0
