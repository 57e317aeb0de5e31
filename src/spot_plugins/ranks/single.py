"""A job of one process, and a board in the memory of one process."""

from __future__ import annotations

import json
import threading
from concurrent import futures

from ..format.manifest import Json
from .base import Board, BoardClosedError
from .notes import LEFT, Answered, Found, NoteBoard, Notes, Question


class SingleRank:
    """A job of one process."""

    rank = 0
    world_size = 1

    def open_board(self) -> Board:
        """Return a board of this process alone."""
        return MemoryBoard()


class MemoryBoard(NoteBoard):
    """A board for the threads of one process. It is public because tests run ranks as threads."""

    def __init__(self) -> None:
        self._notes = Notes()
        self._asked: set[futures.Future[Answered]] = set()
        self._closed = False
        self._lock = threading.RLock()  # a future calls back on the thread that sets it

    def post(self, name: str, value: Json) -> None:
        """See :class:`Board`."""
        text = json.dumps(value)  # so that a reader gets what it would get from a real board
        with self._lock:
            self._check_open()
            self._notes.post(name, text)

    def take_number(self, name: str) -> int:
        """See :class:`Board`."""
        with self._lock:
            self._check_open()
            return self._notes.take_number(name)

    def close(self) -> None:
        """End the board for all threads."""
        with self._lock:
            self._closed = True
            for asked in list(self._asked):  # each one removes itself
                asked.set_exception(BoardClosedError("the board was closed"))

    def end(self, rank: int, how: str = LEFT, *, is_lost: bool = False) -> None:
        """Let the other threads know that *rank* has ended."""
        with self._lock:
            if not self._closed:
                self._notes.end(rank, how, is_lost=is_lost)

    def _ask(self, name: str, num_ranks: int | None, *, waits: bool) -> futures.Future[Answered]:
        asked: futures.Future[Answered] = futures.Future()

        def answer(found: Found) -> None:
            asked.set_result(Answered({rank: json.loads(text) for rank, text in found.texts.items()}, found.ended))

        with self._lock:
            self._check_open()
            self._asked.add(asked)
            asked.add_done_callback(self._asked.discard)
            self._notes.ask(Question(name, num_ranks, answer), waits=waits)
        return asked

    def _check_open(self) -> None:
        if self._closed:
            raise BoardClosedError("the board was closed")
