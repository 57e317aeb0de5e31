"""A SIGTERM to one rank of several, at any moment between the first line of the program and its last."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import cache

import pytest
from contract.hosts.judge import judge, judge_continued
from contract.hosts.lives import HOSTS, live_apart, outcomes, start_apart
from contract.hosts.situation import Interruption, Program, Situation
from launching import printed

SEED = int(os.environ.get("SIGNAL_SEED", time.time_ns() % 1_000_000))
"""Another one each time. Given as SIGNAL_SEED it draws the same moments again, as parts of a life."""
NUM_SIGNALS = 13
LONGEST_S = 300

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def program_of(num_ranks):
    return Program(num_ranks=num_ranks, num_samples=40 * num_ranks, num_epochs=4, validate="epoch", schedule="step")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """Return what a program does that is left alone, and how many seconds its processes last."""

    @cache
    def of(host, num_ranks):
        for _ in range(2):  # the first processes wait for the server that imports the host
            begin = time.monotonic()
            found = live_apart(host, program_of(num_ranks), tmp_path_factory.mktemp("control"))
        return found, time.monotonic() - begin

    return of


@pytest.mark.parametrize("number", range(NUM_SIGNALS))
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("host", HOSTS)
def test_a_signal_to_one_rank_at_any_moment(host, num_ranks, number, control, tmp_path):
    """
    No rank hangs. Either all of them leave with one step, or the training is finished, or the rank had no handler yet
    and nothing was trained. What follows trains the rest, and its end is equal in every bit.
    """
    draw = random.Random(f"{host} {num_ranks} {number} {SEED}")
    part, receiver = draw.random(), draw.randrange(num_ranks)
    program = program_of(num_ranks)
    controls, lasts_s = control(host, num_ranks)
    processes = start_apart(host, program, tmp_path)
    processes[receiver].join(part * lasts_s)
    if processes[receiver].exitcode is None:
        os.kill(processes[receiver].pid, signal.SIGTERM)
    processes[receiver].join(LONGEST_S)
    if processes[receiver].exitcode == -signal.SIGTERM:  # the others may wait for it in torch, as long as torch does
        launcher_ends(processes)
    lives = outcomes(tmp_path, processes)
    codes = [life.exit_code for life in lives]
    told = f"seed {SEED}, rank {receiver} at {part:.3f} of {lasts_s:.1f} s: {codes}", printed(tmp_path, num_ranks)
    print(told[0])
    last = live_apart(host, program, tmp_path)

    if last[0].rows == []:  # the end was stored, and a rank may leave for a signal that comes after that
        assert set(codes) <= {0, 143, -signal.SIGTERM}, told
    elif codes[receiver] == -signal.SIGTERM:  # Python's own answer, before the session begins
        assert not any(life.rows for life in lives), told
    else:
        assert codes == [143] * num_ranks, told
    situation = Situation(name="a notice", program=program, interruptions=(Interruption(rank=receiver),))
    for rank, alone in enumerate(controls):
        if {life.end for life in lives} == {"preempted"}:  # the signal has not come while the session closed
            judge(situation, alone, [lives[rank], last[rank]])
        else:
            judge_continued(alone, last[rank])


def launcher_ends(processes):
    """Tell the other ranks to end, as a launcher does when one has ended."""
    for process in processes:
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGTERM)
