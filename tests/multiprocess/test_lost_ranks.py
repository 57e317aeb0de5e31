"""A rank that dies, hangs or never comes: the others learn it, name it, and obey notices meanwhile."""

from __future__ import annotations

import signal

import pytest
from hearing import said, until
from launching import exit_codes, launch
from ports import free_port

CLOSED = "has ended (its connection was closed)"
ENDS_TOO = "so this rank cannot continue and ends, too. Look at the log of that rank"


class Ranks:
    """Real processes, each a rank of one training of lost_ranks.py."""

    def __init__(self, folder, num_ranks, what):
        self.folder = folder
        address = ("127.0.0.1", free_port())
        self.processes = [
            launch(
                "lost_ranks", (str(folder), rank, num_ranks, address, what), environment={}, output=self.output(rank)
            )
            for rank in range(num_ranks)
        ]

    def output(self, rank):
        return self.folder / f"output-{rank}.txt"

    def until_at(self, rank):
        self._until(rank, (self.folder / f"at-{rank}").exists, "it is there")

    def until_said(self, rank, text):
        self._until(rank, lambda: text in said(self.output(rank)), f"it says {text!r}")

    def _until(self, rank, condition, what):
        process = self.processes[rank]
        until(lambda: condition() or process.exitcode is not None, f"rank {rank}: {what}")
        assert condition(), said(self.output(rank))[-3000:]

    def end(self, *ranks):
        """Wait until *ranks* end. Return their codes."""
        codes = exit_codes([self.processes[rank] for rank in ranks])
        print(*[said(self.output(rank))[-3000:] for rank in range(len(self.processes))], sep="\n")
        return codes


@pytest.fixture
def start(tmp_path):
    """Start ranks, which are killed after the test."""
    started = []

    def make(num_ranks, what):
        started.append(Ranks(tmp_path, num_ranks, what))
        return started[-1]

    yield make
    for ranks in started:
        for process in ranks.processes:
            process.kill()


@pytest.mark.parametrize("what", ["dies_before_it_joins", "dies_before_it_resumes"])
def test_a_rank_that_dies_at_the_start_ends_the_others(what, start):
    """With an error that names it, as soon as it has died."""
    ranks = start(3, what)

    assert ranks.end(0, 1) == [1, 1]
    for rank in (0, 1):
        assert f"RankLostError: rank 2 {CLOSED}, {ENDS_TOO}" in said(ranks.output(rank))


def test_a_rank_that_hangs_at_the_start_ends_the_others(start):
    """Its kernel keeps the connection, but it does not beat."""
    ranks = start(3, "hangs_before_it_resumes")

    assert ranks.end(0, 1) == [1, 1]
    for rank in (0, 1):
        assert f"RankLostError: rank 2 has not been heard from for 3 s, {ENDS_TOO}" in said(ranks.output(rank))


def test_a_sigterm_is_obeyed_while_another_rank_never_joins(start):
    """At once: nothing is trained, so nothing is saved."""
    ranks = start(2, "never_joins")
    ranks.until_at(0)
    ranks.until_said(0, "the ranks agree over a port")
    until(lambda: _takes_sigterm(ranks.processes[0].pid), "signals are taken as notices")
    ranks.processes[0].terminate()

    assert ranks.end(0) == [143]
    assert "SIGTERM: leaving at once, because training has not begun" in said(ranks.output(0))


@pytest.mark.parametrize("noticed", [0, 1])
def test_a_sigterm_before_training_takes_the_other_ranks_along(noticed, start):
    """They leave with 143 as well. Another code would say that the training has failed."""
    ranks = start(3, "never_joins")
    for rank in (0, 1):
        ranks.until_at(rank)
        until(lambda rank=rank: _takes_sigterm(ranks.processes[rank].pid), "signals are taken as notices")
    ranks.processes[noticed].terminate()

    assert ranks.end(0, 1) == [143, 143]
    assert "SIGTERM: leaving at once, because training has not begun" in said(ranks.output(noticed))
    assert "RankLostError" not in said(ranks.output(1 - noticed))


def _takes_sigterm(pid):
    """Return whether the process has a handler for SIGTERM."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_ranks_train_on_after_another_one_has_died_and_obey_notices(start):
    """The launcher ends them as a rule. If not, they say that nothing is saved any more."""
    ranks = start(3, "dies_in_training")
    for rank in (0, 1):
        ranks.until_at(rank)
        ranks.until_said(rank, f"nothing will be saved from now on: rank 2 {CLOSED}")
        ranks.processes[rank].terminate()

    assert ranks.end(0, 1) == [143, 143]


def test_a_rank_that_is_stuck_in_a_collective_ends_after_its_deadline(start):
    """So that its launcher is free. A notice in a collective is obeyed nowhere else."""
    ranks = start(2, "hangs_in_training")
    for rank in (0, 1):
        ranks.until_at(rank)
    ranks.processes[0].terminate()

    assert ranks.end(0) == [143]
    told = "the training thread did not leave within 1 s after the deadline, so this process ends"
    assert told in said(ranks.output(0))


def test_a_rank_that_is_stuck_in_a_collective_ends_after_another_rank_is_lost(start):
    """Without a notice. Otherwise it would stand until the timeout of the collective, half an hour with gloo."""
    ranks = start(2, "hangs_in_training_without_a_notice")

    assert ranks.end(0) == [1]
    said_0 = said(ranks.output(0))
    assert "rank 1 has not been heard from for 3 s, and this rank has made no progress for" in said_0
    assert "so this process ends with 1. Let the launcher start the ranks again" in said_0


def test_a_rank_whose_collective_breaks_names_the_rank_that_is_lost(start):
    """
    Last of all, after the error of gloo, which names none. It says what is stored and what to do, too.

    The rank that is lost has not stored its share of step 2. Rank 0 alone has looked for the shares of all.
    """
    ranks = start(3, "dies_in_a_collective")

    assert ranks.end(0, 1) == [1, 1]
    for rank, stored in enumerate(("step 1 is the newest one stored", "this rank has stored its share of step 2")):
        *_, error, last = said(ranks.output(rank)).strip().splitlines()
        assert last == (
            f"spot_plugins: rank 2 {CLOSED}, which may be why this rank fails: {stored}. "
            f"Let the launcher start the ranks again"
        )
        assert error.startswith("RuntimeError: ")


def test_ranks_close_while_rank_0_hangs(start):
    """They wait a little for it, and end well."""
    ranks = start(3, "rank_0_hangs_at_the_end")

    assert ranks.end(1, 2) == [0, 0]
