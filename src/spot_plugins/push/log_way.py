"""The way of the event log from the trainer to its pusher process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..events import Event
from .process import PusherProcess


class LogWay:
    """
    Sends records of the event log, and tells which events the pusher process has recorded itself.

    Args:
        sending: The lock of whoever sends to the process.
        process: Returns the process, None if there is none.
    """

    def __init__(self, sending: threading.Lock, process: Callable[[], PusherProcess | None]) -> None:
        self._sending = sending
        self._process = process
        self.received: Event | None = None
        """The event of the process that is being emitted."""

    def send(self, records: list[dict[str, Any]]) -> bool:
        """Send *records* to the process, if it runs. Return whether they were sent."""
        with self._sending:
            if (process := self._process()) is None or not process.is_reachable:
                return False
            try:
                process.send({"log": records})
            except OSError:  # the next process gets them
                return False
            return True

    def is_from_process(self, event: Event) -> bool:
        """Return whether *event* is one of the process. Call it while the event is emitted."""
        return event is self.received
