"""The job: its ranks, the board that they share, and the two things that all ranks do together over the board."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Final

from ..format.manifest import Json
from .base import Board, BoardClosedError, Ranks

EXCHANGE_S: Final = 6 * 3600.0  # longest wait for the other ranks, one of which may read hundreds of GB before
MEETING_MARGIN_S: Final = 0.5  # seconds that the thread that meets the others has after the deadline


@dataclass(frozen=True, slots=True)
class Job:
    """This process among the ranks of its job, with the board that they share."""

    ranks: Ranks
    board: Board

    @property
    def rank(self) -> int:
        """Number of this process, counted from 0."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.ranks.world_size

    def exchange(self, name: str, value: Json) -> list[Json]:
        """
        Give *value* to all ranks, and return the values of all ranks in rank order.

        Every rank calls this with the same *name*, which is used once.

        Raises:
            BoardClosedError: The board is gone, or a rank does not call this within :data:`EXCHANGE_S`.
        """
        self.board.post(f"{name}/{self.rank}", value)
        deadline = time.monotonic() + EXCHANGE_S
        return [
            self.board.read(f"{name}/{rank}", max(0.0, deadline - time.monotonic())) for rank in range(self.world_size)
        ]

    def meet(self, deadline: float) -> None:
        """
        Wait until all ranks have called this, or until *deadline* (monotonic). Every rank calls this once, at its end.

        It is needed because launchers kill all other ranks as soon as one process has left.
        """
        # On a thread, because the board of a machine that vanished may block its caller.
        meeting = threading.Thread(target=self._meet, args=(deadline,), name="spot-end", daemon=True)
        meeting.start()
        # wait: the deadline of the caller and MEETING_MARGIN_S; this rank leaves without the others
        meeting.join(max(0.0, deadline - time.monotonic()) + MEETING_MARGIN_S)

    def _meet(self, deadline: float) -> None:
        with contextlib.suppress(BoardClosedError):  # too late, or rank 0 is gone
            self.board.post(f"left/{self.rank}", True)
            for rank in range(self.world_size):
                self.board.read(f"left/{rank}", max(0.0, deadline - time.monotonic()))
