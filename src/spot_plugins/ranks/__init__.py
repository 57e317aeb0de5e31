"""
The ranks of a job, and a small board on which they leave each other notes.

A thread of rank 0's process serves the board over sockets, and every rank has one connection and one thread for it.
What must never break: a call blocks its own thread alone, and no call waits for a rank that has ended.
Only opening the board takes a collective. Afterwards neither torch nor a device is used, because a daemon thread in a
call of torch would abort the process at its end.
Begin with :mod:`.base`, the protocols. :class:`Job` is the one value that others pass on.
"""

from __future__ import annotations

from ..format.manifest import Json
from .base import Board, BoardClosedError, BoardNonsenseError, Gathered, RankLostError, Ranks
from .exchange import Job, Meeting, texts_of_ranks
from .notes import ENDED
from .single import MemoryBoard, SingleRank
from .torch_ranks import TorchRanks, current_ranks

__all__ = [
    "ENDED",
    "Board",
    "BoardClosedError",
    "BoardNonsenseError",
    "Gathered",
    "Job",
    "Json",
    "Meeting",
    "MemoryBoard",
    "RankLostError",
    "Ranks",
    "SingleRank",
    "TorchRanks",
    "current_ranks",
    "texts_of_ranks",
]
