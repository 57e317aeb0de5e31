"""Calls that all ranks make together, if one of them does not."""

from __future__ import annotations

import threading

import pytest
from hearing import DEADLINE_S

from spot_plugins.errors import Preempted
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


def test_a_name_that_is_used_again_has_notes_of_its_own():
    """A rank that is ahead waits for the others, and does not take what they gave before."""
    looks = threading.Event()

    class Board(MemoryBoard):
        def gather(self, name, num_ranks, timeout_s=None):
            if self.read_before:
                looks.set()
            return super().gather(name, num_ranks, timeout_s)

    board = Board()
    board.read_before = False

    def body(ranks):
        job = Job(ranks, board)
        first = job.exchange("found", f"early {ranks.rank}")
        job.exchange("both have come", None)
        board.read_before = True
        if ranks.rank == 1:
            assert looks.wait(DEADLINE_S)
        return first, job.exchange("found", f"late {ranks.rank}")

    assert run_thread_ranks(2, body) == [(["early 0", "early 1"], ["late 0", "late 1"])] * 2


def test_a_notice_ends_the_wait_for_the_others():
    """A rank that has left never comes, and the grace period is short."""

    def wait(seconds):
        raise Preempted(None)

    with pytest.raises(Preempted):
        Job(Two(), MemoryBoard(), wait).exchange("joining", None)


def test_a_board_that_hangs_is_given_up():
    """The machine of rank 0 may vanish. Then a call of the board does not come back."""
    never = threading.Event()

    class Board(MemoryBoard):
        def post(self, name, value):
            never.wait()

    with pytest.raises(BoardClosedError, match="the board of rank 0 has not answered in the exchange of 'joining'"):
        Job(Two(), Board()).exchange("joining", None, 0.05)
    never.set()


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
