"""A training under real agents of torchrun, one for each machine, with the flags of docs/howto/torchrun-rescale.md."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from contextlib import nullcontext, suppress

import agents_train
import pytest
import torch
from launching import PROGRAMS, start
from ports import free_port
from remains import Remains
from torch.distributed import TCPStore

from spot_plugins.data import ElasticSampler

QUICK = "last_call_timeout=2,keep_alive_interval=1"
SPOT_RUN = [sys.executable, "-m", "spot_plugins.cli", "run", "--grace-seconds", "20", "--"]
START_S = 200.0  # three agents and their ranks import torch, perhaps on a busy machine
BATCH = 2


class Machine:
    """
    An agent of torchrun and all that it has started, found by a mark in their environment.

    It has a disk of its own. Without a *host* all machines share the loopback interface.
    """

    def __init__(self, job, name, host=None, **environment):
        self.remains = Remains()
        self.job = job
        self.name = name
        self.host = host
        job.machines.append(self)
        environment |= {**self.remains.environment, "SPOT_DRILL_AGENT": name}
        environment |= {"SPOT_LOCAL_DIR": str(job.folder / f"disk-{name}")}
        if host is not None:
            environment["GLOO_SOCKET_IFNAME"] = "eth0"  # by default gloo resolves the hostname, which all hosts share
        is_host = int(host is not None and host is job.rendezvous)
        flags = ["--rdzv-conf", f"is_host={is_host},{QUICK}", "--monitor-interval", "0.2"]
        flags += ["--local-addr", "127.0.0.1" if host is None else host.address]
        command = [*SPOT_RUN, *job.torchrun, *flags, str(PROGRAMS / "agents_train.py")]
        with nullcontext() if host is None else host.entered():
            self.process = start(command, job.folder, job.settings, environment)

    @property
    def rank(self):
        """The number of its rank, and its process id."""
        number, pid = (self.job.folder / f"rank-of-{self.name}").read_text().split()
        return int(number), int(pid)

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
    """
    A training of several machines.

    With a *network* the store of the rendezvous is on its steady host, unless *rendezvous* is the host of a machine.
    """

    def __init__(self, folder, samples=2000, machines="2:3", network=None, rendezvous=None, **settings):
        self.folder = folder
        self.samples = samples
        self.settings = {"samples": samples, "batch": BATCH, "every_steps": 3, **settings}
        self.machines = []
        self.rendezvous = rendezvous
        where = rendezvous or (network.steady if network is not None else None)
        address, port = "127.0.0.1" if where is None else where.address, free_port()
        if rendezvous is None:  # on a machine that is not taken
            with nullcontext() if where is None else where.entered():
                self.store = TCPStore(address, port, is_master=True, wait_for_workers=False)
        self.torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", machines, "--nproc-per-node", "1"]
        self.torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}"]
        self.torchrun += ["--rdzv-id", uuid.uuid4().hex, "--max-restarts", "9"]

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

    def printed(self, num=5000):
        return (self.folder / "output.txt").read_text()[-num:]

    def end(self):
        """
        Let the training run to its end. Check that all machines end well, each sample counts once, and the weights are
        those of an undisturbed training in one process.

        Returns:
            The number of steps that were trained again, for each attempt that trained some.
        """
        (self.folder / "fast").touch()
        for machine in self.machines:
            if machine.process.returncode is None:
                assert machine.process.wait(timeout=START_S) == 0, self.printed()
            machine.remains.assert_nothing(START_S)
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
        sampler = ElasticSampler(self.samples, seed=agents_train.SEED)
        order, position = list(sampler), 0
        for step in sorted(kept):
            seen = sorted(sample for samples in kept[step].values() for sample in samples)
            assert seen == sorted((order + order)[position : position + len(seen)]), f"step {step}"
            position += len(seen)
        assert self.samples <= position < self.samples + 3 * BATCH
        finished = self.lines("finished")
        assert len({(attempt, step) for attempt, step, _ in finished}) == 1
        assert finished[0][1] == len(kept)
        assert [weight for _, _, weight in finished] == pytest.approx([_control(kept)] * len(finished), rel=1e-9)
        return repeated


def _control(steps):
    """Return the weight after *steps*, of each rank the samples, when one process makes them without a disturbance."""
    model, optimizer = agents_train.model_and_optimizer()
    for step in sorted(steps):
        optimizer.zero_grad()
        for samples in steps[step].values():
            batch = torch.tensor(samples, dtype=torch.float64).unsqueeze(1)
            (agents_train.loss_of(model, batch) / len(steps[step])).backward()
        optimizer.step()
    return model.weight.item()
