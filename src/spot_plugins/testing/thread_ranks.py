"""Several ranks as threads of one process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..ranks import Board, MemoryBoard

Result = TypeVar("Result")


def run_thread_ranks(
    world_size: int, body: Callable[[ThreadRanks], Result], *, timeout_s: float = 300.0
) -> list[Result]:
    """
    Call *body* once per rank, each call on a thread of its own.

    Args:
        world_size: Number of ranks.
        body: Gets the rank's :class:`ThreadRanks`, which is a :class:`~spot_plugins.ranks.Ranks`.
        timeout_s: Seconds that all calls together may take.

    Returns:
        The results of *body*, in rank order.

    Raises:
        BaseException: The first exception that *body* raised on any rank, including ``SystemExit``. The threads of the
            other ranks continue, and end with the process at the latest.
        TimeoutError: Some ranks did not return in time. The message names them.
    """
    boards: list[MemoryBoard] = []
    lock = threading.Lock()
    ended: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()

    def run(rank: int) -> None:
        try:
            ended.put((rank, body(ThreadRanks(rank, world_size, boards, lock)), None))
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it again
            ended.put((rank, None, error))

    for rank in range(world_size):
        threading.Thread(target=run, args=(rank,), name=f"rank-{rank}", daemon=True).start()
    results: dict[int, Result] = {}
    deadline = time.monotonic() + timeout_s
    while len(results) < world_size:
        try:
            # wait: the time limit of the caller; the ranks that have not ended are named
            rank, result, error = ended.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            late = sorted(set(range(world_size)) - set(results))
            raise TimeoutError(
                f"timeout_s={timeout_s}: ranks {late} of {world_size} did not return in time. Raise timeout_s, or look "
                f"for a collective that not all ranks enter"
            ) from None
        if error is not None:
            raise error
        results[rank] = result  # type: ignore[assignment]
    return [results[rank] for rank in range(world_size)]


class ThreadRanks:
    """One of several ranks that are threads of this process. :func:`run_thread_ranks` makes it."""

    def __init__(self, rank: int, world_size: int, boards: list[MemoryBoard], lock: threading.Lock) -> None:
        self.rank = rank
        self.world_size = world_size
        self._boards = boards
        self._lock = lock
        self._num_opened = 0

    def open_board(self) -> Board:
        """Return a board that all ranks share. The n-th call of every rank returns the same board."""
        with self._lock:
            if self._num_opened == len(self._boards):
                self._boards.append(MemoryBoard())
            board = self._boards[self._num_opened]
            self._num_opened += 1
        return board if self.rank == 0 else _Guest(board, self.rank)


class _Guest:
    """The board for every rank but 0. Closing it does not close the board of rank 0."""

    def __init__(self, board: MemoryBoard, rank: int) -> None:
        self.post = board.post
        self.read = board.read
        self.gather = board.gather
        self.take_number = board.take_number
        self._board = board
        self._rank = rank

    def close(self) -> None:
        """Let the other ranks know that this rank has left."""
        self._board.end(self._rank)
