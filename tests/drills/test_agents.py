"""
Real agents of torchrun, one for each machine: the job shrinks and grows, and every sample is trained on once.

Each agent runs behind ``spot run`` with the flags of docs/howto/torchrun-rescale.md.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from agent_jobs import START_S, Job, Machine
from metadata import AwsServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path)
    yield job
    for machine in job.machines:
        machine.end()


def kill_agent(machine):
    """Kill torchrun alone. Its rank is an orphan, which spot run ends."""
    (agent,) = Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGKILL)
    assert machine.process.wait(timeout=START_S) == 137, machine.job.printed()


def notice_to_agent(machine):
    machine.process.terminate()
    assert machine.process.wait(timeout=START_S) == 143, machine.job.printed()


def notice_of_cloud(machine):
    """Let the rank alone read of the end of its machine. Its agent hears nothing."""
    machine.job.cloud.announce(35)
    assert machine.process.wait(timeout=START_S) == 143, machine.job.printed()


LOSSES = [
    pytest.param(Machine.lose, False, id="its machine is lost"),
    pytest.param(kill_agent, True, id="the agent is killed"),
    pytest.param(notice_to_agent, True, id="the agent gets a notice"),
    pytest.param(notice_of_cloud, True, id="the rank alone reads of it"),
]


@pytest.mark.parametrize(("take", "saves"), LOSSES)
def test_a_job_shrinks_by_one_agent_and_grows_when_it_is_back(take, saves, job):
    """
    3 ranks, 2, 3 again: nobody starts anything but the agent that is back. Only a machine that vanishes costs steps,
    those since the newest one that is stored.
    """
    with AwsServer() as job.cloud:
        Machine(job, "a")
        Machine(job, "b")
        taken = Machine(job, "c", AWS_EC2_METADATA_SERVICE_ENDPOINT=job.cloud.url)
        job.until_steps(3)
        at = time.monotonic()
        take(taken)
        job.until_steps(2, after=at)
        at = time.monotonic()
        Machine(job, "c")
        job.until_steps(3, after=at)
        repeated = job.end()

    assert len(repeated) <= (0 if saves else 1), repeated


def test_a_notice_to_one_rank_makes_all_agents_start_their_ranks_again(job):
    """
    All ranks leave with one step, and no agent knows why. None of them ends.
    """
    machines = [Machine(job, name) for name in "abc"]
    job.until_steps(3)
    at = time.monotonic()
    os.kill(machines[1].rank[1], signal.SIGTERM)
    job.until_steps(3, after=at, attempt=2)

    assert job.end() == {}
