"""
The ranks of a job, and a small board on which they leave each other notes.

The board is a TCPStore of our own, served by a thread of rank 0's process. Any thread may use the board.
What must never break: a call blocks its own thread alone, and every call fails soon after rank 0 is gone.
Only opening the board takes a collective. Afterwards no collective and no device is used.
Begin with :mod:`.base`, the protocols. :class:`Job` is the one value that others pass on.
"""

from __future__ import annotations

from ..format.manifest import Json
from .base import Board, BoardClosedError, BoardNonsenseError, Ranks
from .exchange import Job, Meeting, texts_of_ranks
from .single import MemoryBoard, SingleRank
from .torch_ranks import TorchRanks, current_ranks

__all__ = [
    "Board",
    "BoardClosedError",
    "BoardNonsenseError",
    "Job",
    "Json",
    "Meeting",
    "MemoryBoard",
    "Ranks",
    "SingleRank",
    "TorchRanks",
    "current_ranks",
    "texts_of_ranks",
]
