"""A SIGTERM to one rank of several, at any moment between the first line of the program and its last."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from contract.hosts.judge import judge, judge_continued
from contract.hosts.lives import HOSTS, live_apart, outcomes, start_apart
from contract.hosts.situation import Interruption, Program, Situation

SEED = int(os.environ.get("SIGNAL_SEED", time.time_ns() % 1_000_000))
"""Another one each time. Given as SIGNAL_SEED it draws the same moments again, as parts of a life."""
NUM_SIGNALS = 13


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("host", HOSTS)
def test_a_signal_to_one_rank_at_any_moment(host, num_ranks, tmp_path):
    """
    No rank hangs. Either all of them leave with one step, or the training is finished, or the rank had no handler yet
    and nothing was trained. What follows trains the rest, and its end is equal in every bit.
    """
    draw = random.Random(f"{host} {num_ranks} {SEED}")
    program = Program(num_ranks=num_ranks, num_samples=40 * num_ranks, num_epochs=4, validate="epoch", schedule="step")
    folder = tmp_path / "control"
    folder.mkdir()
    begin = time.monotonic()
    controls = live_apart(host, program, folder)
    lasts_s = time.monotonic() - begin
    for number in range(NUM_SIGNALS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        part, receiver = draw.random(), draw.randrange(num_ranks)
        processes = start_apart(host, program, folder)
        processes[receiver].join(part * lasts_s)
        if processes[receiver].exitcode is None:
            os.kill(processes[receiver].pid, signal.SIGTERM)
        lives = outcomes(folder, processes)
        codes = [life.exit_code for life in lives]
        print(f"signal {number} of seed {SEED}: to rank {receiver} at {part:.3f} of a life: codes {codes}")
        last = live_apart(host, program, folder)

        situation = Situation(name="a notice", program=program, interruptions=(Interruption(rank=receiver),))
        for rank, control in enumerate(controls):
            if codes == [143] * num_ranks:
                judge(situation, control, [lives[rank], last[rank]])
            else:
                judge_continued(control, last[rank])
        if codes[receiver] == -signal.SIGTERM:  # Python's own answer, before the session begins and after it has ended
            is_over = all(life.exit_code == 0 for life in lives if life is not lives[receiver])
            assert is_over or not any(life.rows for life in lives), lives
            assert (last[0].rows == []) is is_over
        else:
            assert codes in ([143] * num_ranks, [0] * num_ranks), lives
