"""
Real agents of torchrun, one for each machine: the job shrinks and grows, and every sample is trained on once.

Each agent runs behind ``spot run`` with the flags of docs/howto/torchrun-rescale.md.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from launching import PROGRAMS, start
from metadata import AwsServer
from ports import free_port
from remains import Remains
from torch.distributed import TCPStore

from spot_plugins.data import ElasticSampler

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

QUICK = ["--rdzv-conf", "is_host=0,last_call_timeout=2,keep_alive_interval=1", "--monitor-interval", "0.2"]
SPOT_RUN = [sys.executable, "-m", "spot_plugins.cli", "run", "--grace-seconds", "20", "--"]
SEED = 7
START_S = 200.0  # three agents and their ranks import torch, perhaps on a busy machine
BATCH = 2


class Machine:
    """An agent of torchrun and all that it has started, found by a mark in their environment."""

    def __init__(self, job, name, **environment):
        self.remains = Remains()
        self.job = job
        job.machines.append(self)
        environment |= {**self.remains.environment, "SPOT_DRILL_AGENT": name}
        self.process = start([*SPOT_RUN, *job.torchrun], job.folder, job.settings, environment)

    def lose(self):
        """Kill all processes of the machine."""
        os.kill(self.process.pid, signal.SIGSTOP)  # so that it restarts and signals nothing
        self.end()

    def end(self):
        """End what still runs."""
        while self.remains.processes():
            with suppress(ProcessLookupError):  # one has ended meanwhile
                self.remains.kill()
        self.process.wait()


class Job:
    """A training of several machines."""

    def __init__(self, folder, samples=2000):
        self.folder = folder
        self.samples = samples
        self.settings = {"samples": samples, "batch": BATCH, "every_steps": 3}
        self.machines = []
        # The store of the rendezvous, on a machine that is not taken.
        self.store = TCPStore("127.0.0.1", port := free_port(), is_master=True, wait_for_workers=False)
        self.torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2:3", "--nproc-per-node", "1"]
        self.torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", *QUICK]
        self.torchrun += ["--rdzv-id", uuid.uuid4().hex, "--max-restarts", "9", "--local-addr", "127.0.0.1"]
        self.torchrun += [str(PROGRAMS / "agents_train.py")]

    def lines(self, name):
        file = self.folder / f"{name}.jsonl"
        text = file.read_text() if file.exists() else ""
        return [
            json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()
        ]  # the last one may be half there

    def until_steps(self, ranks, after=0.0, attempt=1, steps=4):
        """Wait until *ranks* have made *steps* after the time *after*, in *attempt* or a later one. Return when."""

        def times():
            assert any(machine.process.poll() is None for machine in self.machines), self.printed()
            lines = self.lines("trace")
            return sorted(
                at for made_in, _, _, num, at, _ in lines if made_in >= attempt and num == ranks and at > after
            )

        deadline = time.monotonic() + START_S
        while len(times()) < steps * ranks:
            assert time.monotonic() < deadline, f"{ranks} ranks do not train: {self.printed()}"
            time.sleep(0.05)
        return times()[0]

    def rank_of(self, name):
        """Return the process id of the rank of the agent *name*."""
        return int((self.folder / f"rank-of-{name}").read_text())

    def printed(self):
        return (self.folder / "output.txt").read_text()[-5000:]

    def end(self):
        """
        Let the training run to its end, and check that all machines end well and each sample counts once.

        Returns:
            The number of steps that were trained again, for each attempt that trained some.
        """
        (self.folder / "fast").touch()
        for machine in self.machines:
            if machine.process.returncode is None:
                assert machine.process.wait(timeout=START_S) == 0, self.printed()
        assert "restarted ranks will not find each other" not in (self.folder / "output.txt").read_text()
        trained = {}
        for attempt, step, rank, _, _, seen in self.lines("trace"):
            trained.setdefault(attempt, {}).setdefault(step, {})[rank] = seen
        began = dict(self.lines("resumed"))
        kept, repeated = {}, {}
        for attempt in sorted(trained):
            if num := sum(step > began[attempt] for step in kept):
                repeated[attempt] = num
            kept = {step: seen for step, seen in kept.items() if step <= began[attempt]} | trained[attempt]
        assert sorted(kept) == [*range(1, len(kept) + 1)], "a step is missing"
        sampler = ElasticSampler(self.samples, seed=SEED)
        order, position = list(sampler), 0
        for step in sorted(kept):
            seen = sorted(sample for samples in kept[step].values() for sample in samples)
            assert seen == sorted((order + order)[position : position + len(seen)]), f"step {step}"
            position += len(seen)
        assert self.samples <= position < self.samples + 3 * BATCH
        finished = self.lines("finished")
        assert len({(attempt, step) for attempt, step, _ in finished}) == 1
        assert finished[0][1] == len(kept)
        return repeated


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
    machine.job.cloud.announce(15)
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
    for name in "abc":
        Machine(job, name)
    job.until_steps(3)
    at = time.monotonic()
    os.kill(job.rank_of("b"), signal.SIGTERM)
    job.until_steps(3, after=at, attempt=2)

    assert job.end() == {}
