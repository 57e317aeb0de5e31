"""
Who the ranks of a job are, and a small board on which they leave each other notes.

The board is a TCPStore of our own, served by rank 0. It needs no collective and no device; only
finding it takes one collective, at the start. Its users never wait on the training thread for another
rank's *training*, only for notes of threads that are always there.
"""

from __future__ import annotations

from .base import Board, BoardClosedError, Ranks
from .exchange import Job
from .single import MemoryBoard, SingleRank
from .torch_ranks import TorchRanks, current_ranks

__all__ = [
    "Board",
    "BoardClosedError",
    "Job",
    "MemoryBoard",
    "Ranks",
    "SingleRank",
    "TorchRanks",
    "current_ranks",
]
