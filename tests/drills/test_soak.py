"""One training on S3 through a long row of interruptions, on other ranks after each of them, while its store is sick."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from drill_settings import Settings
from elastic_train import net
from exactness import events_of, samples_by_step
from hearing import said, until
from launching import exit_codes, launch_ranks, printed
from remains import Remains
from servers import FaultProxy
from steps import assert_whole, numbers
from torch import nn
from training_pieces import Points

from spot_plugins.data import ElasticSampler
from spot_plugins.store import open_store

SEED = int(os.environ.get("SOAK_SEED", time.time_ns() % 1_000_000))
"""Another one each time. To repeat the drawing of a soak that failed, give the one in the name of its test."""

NUM_INTERRUPTIONS = 40
MOST_STEPS = 80
"""Steps that a life trains at most before its interruption."""

BATCH, PER_STEP = 2, 12
"""Samples of a batch, and of an optimizer step on any number of ranks."""

SAMPLES = 720
EPOCHS = 2 + NUM_INTERRUPTIONS * MOST_STEPS * PER_STEP // SAMPLES
GRACE_S = 20
MOST_FAULT_S = 4.0
CLIENT_TIMEOUTS = {"connect_timeout": 1, "read_timeout": 1}

FAULTS = {
    "none": FaultProxy.heal,
    "503": lambda proxy: proxy.fail_with(503, "SlowDown"),
    "429": lambda proxy: proxy.fail_with(429, "TooManyRequests"),
    "403": lambda proxy: proxy.fail_with(403, "AccessDenied"),
    "reset": FaultProxy.refuse,
    "hang": FaultProxy.hang,
    "slow drip": lambda proxy: proxy.slow(20_000),
    "reset in the body": lambda proxy: proxy.reset_after(1_000),
    "answers without an end": FaultProxy.cut_answers,  # what was put is there, and nobody is told
}


@dataclass(frozen=True)
class Life:
    """A process life of the training: on how many ranks, which interruption ends it, and when its store is sick."""

    ranks: int
    signal: signal.Signals | None
    """None: it trains to the end."""
    receivers: list[int]
    keeps_disk: bool
    """Whether the next life finds the local disk again."""
    after_steps: int
    """Optimizer steps before the interruption."""
    fault: str
    fault_after_steps: int
    """Optimizer steps before the fault begins. 0: it begins before the processes do."""
    fault_s: float

    @property
    def takes_machine(self):
        """Whether everything ends at once, pushers too."""
        return self.signal == signal.SIGKILL and len(self.receivers) == self.ranks


def drawn_life(draw, *, to_the_end=False):
    ranks = draw.randint(1, 3)
    after_steps = draw.randint(1, MOST_STEPS)
    drawn = draw.choice([signal.SIGTERM, signal.SIGKILL])
    receivers = draw.choice([[draw.randrange(ranks)], [*range(ranks)]])
    return Life(
        ranks=ranks,
        signal=None if to_the_end else drawn,
        receivers=receivers,
        # Where only one rank is killed, the pushers go on, and the machine too.
        keeps_disk=(drawn == signal.SIGKILL and len(receivers) < ranks) or draw.random() < 0.5,
        after_steps=after_steps,
        fault=draw.choice([*FAULTS]),
        fault_after_steps=draw.randint(0, after_steps),
        fault_s=draw.uniform(0.2, MOST_FAULT_S),
    )


@dataclass
class Soak:
    """The lives of one training, and what it has trained so far."""

    folder: object
    settings: dict
    proxy: FaultProxy
    store: object
    """The store past the proxy."""
    remains: Remains = field(default_factory=Remains)
    histories: dict = field(default_factory=dict)
    """What each attempt has trained, with all that it has resumed behind: lines of the trace, by attempt."""

    def newest(self):
        """Return the newest step that is committed, 0 if there is none."""
        return max(numbers(self.store), default=0)

    def live(self, number, life):
        """Start the training, interrupt it, and check what is left of it."""
        folder = self.folder / f"life-{number}"
        newest = self.newest()
        if newest == 0:  # it begins anew, and from then on keeps what a step is made of
            self.settings["accumulate"] = PER_STEP // (BATCH * life.ranks)
        begin_fault = lambda: FAULTS[life.fault](self.proxy)  # noqa: E731
        healer = threading.Timer(life.fault_s, self.proxy.heal)
        if life.fault_after_steps == 0:
            begin_fault()
            healer.start()
        processes = launch_ranks("elastic_train", folder, {**self.settings, "ranks": life.ranks}, self.remains.environment)
        self.remains.sessions |= {process.pid for process in processes}

        def until_trained(num_steps):
            ended = lambda: any(process.exitcode is not None for process in processes)  # noqa: E731
            until(lambda: num_trained(folder) >= num_steps or ended(), f"{num_steps} steps are trained")
            assert num_trained(folder) >= num_steps, printed(folder, life.ranks)

        if life.fault_after_steps > 0:
            until_trained(life.fault_after_steps)
            begin_fault()
            healer.start()
        if life.signal is not None:
            until_trained(life.after_steps)
            for rank in life.receivers:
                os.kill(processes[rank].pid, life.signal)
            if life.takes_machine:
                self.remains.kill()
        codes = exit_codes(processes, 600 if life.signal is None else 90)
        healer.join()
        self.remains.assert_nothing(within_s=GRACE_S)

        self.assert_ended_well(folder, life, codes)
        self.write_down(folder, life, newest)
        if not life.keeps_disk:
            shutil.rmtree(self.settings["config"]["local_dir"], ignore_errors=True)

    def assert_ended_well(self, folder, life, codes):
        """Check the exit codes, and that the end of a notice is committed."""
        if life.signal == signal.SIGKILL:
            assert [code == -signal.SIGKILL for code in codes] == [rank in life.receivers for rank in range(life.ranks)]
            assert 0 not in codes
            assert None not in codes, printed(folder, life.ranks)
        else:
            assert set(codes) == {143 if life.signal else 0}, (codes, printed(folder, life.ranks))
            last = max(step for _, step, *_ in trace(folder))
            assert self.newest() == last, printed(folder, life.ranks)

    def write_down(self, folder, life, newest):
        """Add what this life has trained to that which it has resumed behind."""
        assert_whole(self.store)
        committed = [{event["step"] for event in events_of(folder, rank, "Committed")} for rank in range(life.ranks)]
        assert self.newest() >= max(set.intersection(*committed), default=0), "no step is lost that all have committed"
        [attempt] = {event["attempt"] for rank in range(life.ranks) for event in events_of(folder, rank, "AttemptStarted")}
        resumed = [[(e["step"], e["from_attempt"]) for e in events_of(folder, rank, "Resumed")] for rank in range(life.ranks)]
        assert resumed == [resumed[0]] * life.ranks
        [(step, from_attempt)] = resumed[0] or [(0, None)]
        assert step >= newest, "a committed step is lost"
        rows = trace(folder)
        assert min(row[1] for row in rows) == step + 1
        self.histories[attempt] = [row for row in self.histories.get(from_attempt, []) if row[1] <= step] + rows


def trace(folder):
    """Return the lines of the trace in *folder* that are complete."""
    return [json.loads(line) for line in said(folder / "trace.jsonl").rpartition("\n")[0].splitlines()]


def num_trained(folder):
    """Return how many optimizer steps have begun."""
    steps = [step for _, step, *_ in trace(folder)]
    return steps[-1] - steps[0] + 1 if steps else 0


def trained_alone(settings):
    """Return the samples and the loss of each step of the same training in a plain loop of torch."""
    model, points, sampler = net(settings), Points(SAMPLES), ElasticSampler(SAMPLES, seed=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = {}
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for samples in torch.tensor(list(sampler)).split(PER_STEP):
            loss = nn.functional.cross_entropy(model(points.x[samples]), points.y[samples])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps[epoch, len(steps) + 1] = sorted(samples.tolist()), loss.item()
    return steps


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("host", ["accelerate", "lightning"])
def test_interruptions_one_after_the_other_lose_nothing(host, seed, s3_server, tmp_path):
    """
    Each life has 1, 2 or 3 ranks, a fault of its store, and an end: a notice to one rank or all, a rank that is killed,
    or a machine that vanishes, with its disk or without. No committed step is lost, and no step at all by a notice.
    In the end every sample was trained once in each epoch, and every loss is that of a training left alone.
    """
    draw = random.Random(f"{host} {seed}")
    lives = [*(drawn_life(draw) for _ in range(NUM_INTERRUPTIONS)), drawn_life(draw, to_the_end=True)]
    url = f"{s3_server.create_bucket(f'soak-{host}-{seed}')}/run"
    with FaultProxy(s3_server.endpoint_url) as proxy:
        settings = {"host": host, "samples": SAMPLES, "epochs": EPOCHS, "batch": BATCH, "url": url}
        settings["config"] = {
            "every_steps": 5,
            "grace_seconds": GRACE_S,
            "local_dir": str(tmp_path / "disk"),
            "storage_options": s3_server.storage_options(endpoint_url=proxy.endpoint_url, **CLIENT_TIMEOUTS),
        }
        soak = Soak(tmp_path, settings, proxy, open_store(url, s3_server.storage_options()))
        try:
            for number, life in enumerate(lives):
                print(f"seed {seed}, life {number}: {life}", flush=True)
                soak.live(number, life)
        finally:
            soak.remains.kill()

    steps = samples_by_step(soak.histories[max(soak.histories)])
    for epoch in range(EPOCHS):
        seen = Counter(sample for key, (samples, _) in steps.items() if key[0] == epoch for sample in samples)
        assert seen == Counter(range(SAMPLES)), f"each sample of epoch {epoch} once"
    alone = trained_alone(Settings(folder=str(tmp_path), **settings))
    assert steps.keys() == alone.keys()
    for key, (samples, loss) in alone.items():
        assert steps[key][0] == samples, key
        assert steps[key][1] == pytest.approx(loss, abs=1e-3), key
