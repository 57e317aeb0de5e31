"""Exchanges of values between all ranks, over the board."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final

from ..format.manifest import Json
from .base import Board, BoardClosedError, Ranks

MEETING_MARGIN_S: Final = 0.5  # how much longer than until its deadline the thread that meets the others may take


def exchange(ranks: Ranks, board: Board, name: str, value: Json) -> list[Json]:
    """Give *value* to all ranks and return theirs, in rank order. Every rank calls it with the same *name*."""
    board.post(f"{name}/{ranks.rank}", value)
    return [board.read(f"{name}/{rank}") for rank in range(ranks.world_size)]


def meet(ranks: Ranks, board: Board, deadline: float) -> None:
    """
    Let all ranks come to their end, or wait until *deadline* (monotonic). Every rank calls it, once.

    Launchers kill the rest as soon as one process has left.
    """
    # A thread, because the board of a machine that vanished may hold up whoever reads it.
    meeting = threading.Thread(target=_meet, args=(ranks, board, deadline), name="spot-end", daemon=True)
    meeting.start()
    meeting.join(max(0.0, deadline - time.monotonic()) + MEETING_MARGIN_S)


def _meet(ranks: Ranks, board: Board, deadline: float) -> None:
    with contextlib.suppress(BoardClosedError):  # too late, or rank 0 is gone
        board.post(f"left/{ranks.rank}", True)
        for rank in range(ranks.world_size):
            board.read(f"left/{rank}", max(0.0, deadline - time.monotonic()))
