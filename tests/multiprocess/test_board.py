"""The board of real processes: what threads prove about an agreement holds for them if the boards are alike."""

from __future__ import annotations

import signal

import pytest
from launching import exit_codes, launch
from ports import free_port


@pytest.fixture
def run_ranks(tmp_path):
    """Run a function of board_ranks.py on real processes; return how each of them ended."""

    def run(world_size, what):
        port = free_port()
        ranks = [
            launch("board_ranks", (rank, world_size, port, what), environment={}, output=tmp_path / f"{rank}.txt")
            for rank in range(world_size)
        ]
        codes = exit_codes(ranks)
        print(*[(tmp_path / f"{rank}.txt").read_text()[-3000:] for rank in range(world_size)], sep="\n")
        return codes

    return run


def test_all_ranks_share_one_board(run_ranks):
    """Notes come through as they were written, numbers are taken once, and who waits holds up nobody."""
    assert run_ranks(3, "take_part") == [0, 0, 0]


def test_without_rank_0_nobody_waits(run_ranks):
    """The others learn that the board is gone, at once and from every call."""
    assert run_ranks(3, "lose_rank_0") == [0, 0, 0]


def test_a_machine_that_vanishes_does_not_hold_up_the_end(run_ranks):
    """Rank 0 answers nothing, not even that it is gone: the others leave on a notice, and close."""
    assert run_ranks(2, "outlive_a_machine") == [-signal.SIGKILL, 0]


def test_a_rank_that_is_killed_is_known_to_all(run_ranks):
    """At once, in an exchange, a wait and a meeting, though a child of it lives on."""
    assert run_ranks(3, "lose_a_rank") == [0, 0, -signal.SIGKILL]


def test_a_job_of_one_machine_opens_nothing_to_the_network(run_ranks, tmp_path):
    """With MASTER_ADDR=127.0.0.1 on one rank and localhost on the other, the board listens on loopback, and says so."""
    assert run_ranks(2, "listen_to_ourselves") == [0, 0]
    assert "it listens on 127.0.0.1, port" in (tmp_path / "0.txt").read_text()
