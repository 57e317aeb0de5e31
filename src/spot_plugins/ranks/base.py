"""The protocols of ranks and of the board that they share."""

from __future__ import annotations

from typing import Protocol

from ..errors import SpotError
from ..format.manifest import Json


class BoardClosedError(SpotError):
    """The rank that serves the board is gone, or this side closed it."""


class Board(Protocol):
    """
    Notes by name, seen by all ranks. A name is written once and never changes.

    Methods block the calling thread only, with Python's lock released; safe from any thread. When rank 0 is gone
    they raise; when its machine hangs or vanishes without a word, so may they: call them on a daemon thread
    where that must not happen.
    """

    def post(self, name: str, value: Json) -> None:
        """Write the note *name*. Raise :exc:`BoardClosedError` if the board is gone."""
        ...

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """
        Wait for the note *name* and return it.

        Raises:
            BoardClosedError: It did not come within *timeout_s* (None: however long it takes), or the board is gone.
        """
        ...

    def take_number(self, name: str) -> int:
        """Return 1 to the first caller, on whatever rank, 2 to the second, and so on."""
        ...

    def close(self) -> None:
        """Let go. Rank 0's closing ends the board for all."""
        ...


class Ranks(Protocol):
    """This process among the processes of the job."""

    @property
    def rank(self) -> int:
        """This process, counted from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def open_board(self) -> Board:
        """Return a board that all ranks share. Every rank calls it, once, at the start."""
        ...
