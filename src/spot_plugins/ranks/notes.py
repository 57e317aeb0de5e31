"""The state of a board, and what a board does with it: pure, without threads and sockets."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from ..format.manifest import Json
from .base import BoardClosedError, Gathered, LeftOnNoticeError, RankLostError

ANSWER_S: Final = 5.0
"""Longest wait in seconds for an answer that rank 0 can give at once."""

LEFT: Final = "has left"
"""The end of a rank that said farewell."""

LEFT_ON_NOTICE: Final = "has left because of a notice"
"""The same, after a rank has posted :data:`EARLY_END`."""

EARLY_END: Final = "early end"
"""The note of a rank that leaves because of a notice, before training begins."""

ENDED: Final = "ended"
"""The name of the notes of the board itself about the ranks that have ended, one of each such rank."""

Ended: TypeAlias = "tuple[int, str]"
"""A rank that has ended, and the end of a sentence that begins with the rank: how this is known."""


class Found(NamedTuple):
    """The answer to a :class:`Question`."""

    texts: dict[int, str]
    """The notes that are there as JSON, by rank. A note that is not of each rank is that of rank 0."""
    ended: Ended | None
    """The rank because of which a note never comes."""


class Answered(NamedTuple):
    """The same with the values of the notes."""

    notes: dict[int, Json]
    ended: Ended | None


@dataclass(slots=True)
class Question:
    """The wait of one rank for one note, or for one note of each rank."""

    name: str
    num_ranks: int | None
    """The number of notes, ``name/0`` and so on. None: the one note *name*."""
    answer: Callable[[Found], None]
    num_found: int = 0
    """The notes that are there, up to the first one that is not."""

    @property
    def names(self) -> list[str]:
        """The names of the notes."""
        return [self.name] if self.num_ranks is None else [f"{self.name}/{rank}" for rank in range(self.num_ranks)]

    @property
    def next_name(self) -> str | None:
        """The first note that is not there. None if all are."""
        if self.num_ranks is None:
            return None if self.num_found else self.name
        return f"{self.name}/{self.num_found}" if self.num_found < self.num_ranks else None


class Notes:
    """The notes, the numbers, the ranks that have ended, and the questions that wait. Callers hold a lock."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._ended: dict[int, str] = {}  # how, by rank
        self._lost: Ended | None = None  # the first rank that ended without a farewell
        self._waiting: dict[str, list[Question]] = {}  # by the first note that each of them misses
        self._complete: tuple[tuple[str, int | None], Found] | None = None  # the last answer that misses nothing

    def post(self, name: str, text: str) -> None:
        """Write the note *name*, unless it is there, and answer who waits for it."""
        if name not in self._texts:
            self._texts[name] = text
            for question in self._waiting.pop(name, ()):
                self._look(question)

    @property
    def has_early_end(self) -> bool:
        """True after a rank has posted :data:`EARLY_END`."""
        return EARLY_END in self._texts

    def take_number(self, name: str) -> int:
        """See :class:`~.base.Board`."""
        self._numbers[name] += 1
        return self._numbers[name]

    def end(self, rank: int, how: str, *, is_lost: bool) -> None:
        """Take note that *rank* has ended, and answer who waits for it. It *is_lost* unless it said farewell."""
        how = LEFT_ON_NOTICE if how == LEFT and self.has_early_end else how
        self._ended.setdefault(rank, how)
        self.post(f"{ENDED}/{rank}", json.dumps(how))
        if is_lost and self._lost is None:
            self._lost = rank, how
        waiting, self._waiting = self._waiting, {}
        for questions in waiting.values():
            for question in questions:
                self._look(question)

    def ask(self, question: Question, *, waits: bool) -> None:
        """Answer *question*. If it *waits*, not before all its notes are there or one never comes."""
        self._look(question, waits=waits)

    def _look(self, question: Question, *, waits: bool = True) -> None:
        asked = question.name, question.num_ranks
        if self._complete is not None and self._complete[0] == asked:  # each rank asks this, and no note ever changes
            question.answer(self._complete[1])
            return
        while (name := question.next_name) in self._texts:
            question.num_found += 1
        ended = None if name is None else self._ended_of(question)
        if name is not None and ended is None and waits:
            self._waiting.setdefault(name, []).append(question)
        else:
            texts = enumerate(map(self._texts.get, question.names))
            found = Found({rank: text for rank, text in texts if text is not None}, ended)
            if name is None:
                self._complete = asked, found
            question.answer(found)

    def _ended_of(self, question: Question) -> Ended | None:
        """Return the rank because of which *question*, which misses a note, is answered at once."""
        if self._lost is not None or question.num_ranks is None:
            return self._lost
        return next(iter(self._ended.items()), None)


class NoteBoard(ABC):
    """The part of a :class:`~.base.Board` that is the same whether its :class:`Notes` are here or on rank 0."""

    @abstractmethod
    def _ask(self, name: str, num_ranks: int | None, *, waits: bool) -> futures.Future[Answered]:
        """Ask for a note, or for one of each rank. The future gets an error when the board is lost."""

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """See :class:`~.base.Board`."""
        notes, ended = self._find(name, None, timeout_s)
        if not notes:
            raise _missing(name, ended, timeout_s)
        return notes[0]

    def gather(self, name: str, num_ranks: int, timeout_s: float | None = None) -> Gathered:
        """See :class:`~.base.Board`."""
        try:
            notes, ended = self._find(name, num_ranks, timeout_s)
        except BoardClosedError as error:
            return Gathered({}, error)
        missing = next((rank for rank in range(num_ranks) if rank not in notes), None)
        return Gathered(notes, None if missing is None else _missing(f"{name}/{missing}", ended, timeout_s))

    def _find(self, name: str, num_ranks: int | None, timeout_s: float | None) -> Answered:
        if timeout_s is None or timeout_s > 0:
            with suppress(futures.TimeoutError):
                # wait: timeout_s of the caller, else until a rank ends or the board is lost; the caller gets an error
                return self._ask(name, num_ranks, waits=True).result(timeout_s)
        with suppress(futures.TimeoutError):
            # wait: ANSWER_S; the caller gets an error
            return self._ask(name, num_ranks, waits=False).result(ANSWER_S)
        raise BoardClosedError(f"rank 0, which has the notes of all ranks, does not answer within {ANSWER_S:g} s")


def _missing(name: str, ended: Ended | None, timeout_s: float | None) -> BoardClosedError:
    if ended is not None:
        return LeftOnNoticeError(*ended) if ended[1] == LEFT_ON_NOTICE else RankLostError(*ended)
    return BoardClosedError(f"nobody wrote {name!r} within {timeout_s} s")
