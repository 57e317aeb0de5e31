"""A job of one process, and a board in the memory of one process."""

from __future__ import annotations

import json
import threading

from ..format.manifest import Json
from .base import Board, BoardClosedError


class SingleRank:
    """A job of one process."""

    rank = 0
    world_size = 1

    def open_board(self) -> Board:
        """Return a board of this process alone."""
        return MemoryBoard()


class MemoryBoard:
    """A board for the threads of one process. It is public because tests run ranks as threads."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._closed = False
        self._changed = threading.Condition()

    def post(self, name: str, value: Json) -> None:
        """See :class:`Board`."""
        text = json.dumps(value)  # so that a reader gets what it would get from a real board
        with self._changed:
            self._check_open()
            self._notes[name] = text
            self._changed.notify_all()

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """See :class:`Board`."""
        with self._changed:
            # wait: timeout_s of the caller, else until the board is closed; the caller gets an error
            if not self._changed.wait_for(lambda: self._closed or name in self._notes, timeout_s):
                raise BoardClosedError(f"nobody wrote {name!r} within {timeout_s} s")
            self._check_open()
            value: Json = json.loads(self._notes[name])
            return value

    def take_number(self, name: str) -> int:
        """See :class:`Board`."""
        with self._changed:
            self._check_open()
            self._numbers[name] = self._numbers.get(name, 0) + 1
            return self._numbers[name]

    def close(self) -> None:
        """End the board for all threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise BoardClosedError("the board was closed")
