"""The protocols of ranks and of the board that they share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..errors import SpotError
from ..format.manifest import Json


class BoardClosedError(SpotError):
    """The board cannot be used, or a note did not come in time. The message says why."""


class BoardNonsenseError(BoardClosedError):
    """A note cannot be understood, because the ranks run different versions."""


class RankLostError(BoardClosedError):
    """
    A rank has ended, or is not heard from any more, so what this rank waits for never comes.

    Attributes:
        rank: The rank.
        how: The end of a sentence that begins with the rank: how this is known.
    """

    def __init__(self, rank: int, how: str) -> None:
        super().__init__(rank, how)
        self.rank = rank
        self.how = how

    def __str__(self) -> str:
        return f"rank {self.rank} {self.how}"


class LeftOnNoticeError(RankLostError):
    """A rank has left because of a notice, before training began. So there is nothing to save, and this rank leaves."""


class Gathered(NamedTuple):
    """The notes of all ranks under one name."""

    notes: dict[int, Json]
    """The notes that are there, by rank."""
    missing: BoardClosedError | None
    """The reason if a note is missing."""


class Board(Protocol):
    """
    Notes by name, seen by all ranks. A note is written once: a second one of the same name is dropped.

    Methods are safe from any thread. They block the calling thread alone, with Python's lock released. No call waits
    for a rank that has ended. After the board is lost, every call raises.
    """

    def post(self, name: str, value: Json) -> None:
        """
        Write the note *name*. It returns at once.

        Raises:
            BoardClosedError: The board is lost, or the note is too long.
        """
        ...

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """
        Wait for the note *name* and return it. Whichever rank is lost, the wait ends.

        Raises:
            RankLostError: The note is not there, and a rank is lost.
            BoardClosedError: The note did not come within *timeout_s* (None: no limit), or the board is lost.
        """
        ...

    def gather(self, name: str, num_ranks: int, timeout_s: float | None = None) -> Gathered:
        """
        Wait for the notes ``name/0``, ``name/1`` and so on, one of each rank.

        The wait ends as soon as a rank is lost or has left, because then it cannot be expected of all ranks.

        Returns:
            The notes. If some are missing, also the reason: an error as of :meth:`read`.
        """
        ...

    def take_number(self, name: str) -> int:
        """
        Return 1 to the first caller, on whatever rank, 2 to the second, and so on.

        Raises:
            BoardClosedError: The board is lost.
        """
        ...

    def close(self) -> None:
        """Leave the board. The other ranks learn that this rank is not lost. With rank 0, the board ends for all."""
        ...


class Ranks(Protocol):
    """This process among the processes of the job."""

    @property
    def rank(self) -> int:
        """Number of this process, counted from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def open_board(self) -> Board:
        """Return a board that all ranks share. Every rank calls this once, at the start."""
        ...
