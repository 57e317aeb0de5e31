"""Calls that all ranks make together, if one of them does not."""

from __future__ import annotations

import threading

import pytest

from spot_plugins.ranks import BoardClosedError, Job, MemoryBoard, exchange
from spot_plugins.testing import run_thread_ranks


class Two:
    rank = 0
    world_size = 2


def test_a_rank_that_never_comes_is_not_waited_for_without_a_limit(monkeypatch):
    """The error names what was waited for, and so the rank."""
    monkeypatch.setattr(exchange, "EXCHANGE_S", 0.05)

    with pytest.raises(BoardClosedError, match="nobody wrote 'joining/1'"):
        Job(Two(), MemoryBoard()).exchange("joining", None)


def test_a_closed_board_takes_and_gives_nothing():
    """A rank that comes late does not wait for one that has left."""
    board = MemoryBoard()
    board.close()

    with pytest.raises(BoardClosedError, match="the board was closed"):
        board.post("step", 1)
    with pytest.raises(BoardClosedError, match="the board was closed"):
        board.read("step")


def test_ranks_that_do_not_end_are_named():
    """The test that waits for them fails with their numbers."""
    end = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"ranks \[1\] of 2 did not return in time"):
            run_thread_ranks(2, lambda ranks: ranks.rank and end.wait(), timeout_s=0.1)
    finally:
        end.set()
