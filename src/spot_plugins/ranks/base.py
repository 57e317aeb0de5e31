"""The protocols of ranks and of the board that they share."""

from __future__ import annotations

from typing import Protocol

from ..errors import SpotError
from ..format.manifest import Json


class BoardClosedError(SpotError):
    """The board cannot be used: rank 0, which serves it, is gone, or this rank closed it."""


class BoardNonsenseError(BoardClosedError):
    """A note cannot be understood. A stranger writes to the board, or the ranks run different versions."""


class Board(Protocol):
    """
    Notes by name, seen by all ranks. A note is written once and never changes.

    Methods are safe from any thread. They block the calling thread alone, with Python's lock released. After rank 0 has
    ended they raise. If the machine of rank 0 hangs or vanishes, they may hang as well, so a thread that must not hang
    leaves them to a daemon thread.
    """

    def post(self, name: str, value: Json) -> None:
        """
        Write the note *name*.

        Raises:
            BoardClosedError: The board is gone.
        """
        ...

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """
        Wait for the note *name* and return it.

        Raises:
            BoardClosedError: The note did not come within *timeout_s* (None: no limit), or the board is gone.
            BoardNonsenseError: The note is not JSON.
        """
        ...

    def take_number(self, name: str) -> int:
        """Return 1 to the first caller, on whatever rank, 2 to the second, and so on."""
        ...

    def close(self) -> None:
        """Let go of the board. If rank 0 does so, the board ends for all ranks."""
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
