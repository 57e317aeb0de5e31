"""A training on S3 through a long row of interruptions, each after a life on other ranks and with a sick store."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter

import pytest
import torch
from drawn_lives import FAULTS, drawn_life
from drill_settings import Settings
from elastic_train import net, schedule_of
from event_logs import agrees, recount
from exactness import events_of, samples_by_step
from hearing import said, until
from launching import exit_codes, launch_ranks, printed
from remains import Remains
from servers import S3Server
from steps import assert_whole, numbers
from torch import nn
from training_pieces import Points

from spot_plugins.data import ElasticSampler
from spot_plugins.store import open_store
from spot_plugins.testing import FaultProxy

# Another one each time. The test's name ends with it. Given as SOAK_SEED it draws the same lives again.
SEED = int(os.environ.get("SOAK_SEED", time.time_ns() % 1_000_000))
NUM_INTERRUPTIONS = 40
GRACE_S = 20
SAMPLES = 720
BATCH = 2
PER_STEP = 12  # samples of an optimizer step on any number of ranks


class Soak:
    """
    The lives of one training. *store* is the store past the proxy.

    ``histories`` holds what each attempt has trained, after all that it has resumed from: lines of the trace.
    """

    def __init__(self, folder, settings, proxy, store):
        self.folder, self.settings, self.proxy, self.store = folder, settings, proxy, store
        self.histories = {}

    def newest(self):
        """Return the newest step that is committed, 0 if there is none."""
        return max(numbers(self.store), default=0)

    def live(self, folder, life):
        """Run the training in *folder* until *life* is over, and check all that can be seen of it."""
        newest, remains = self.newest(), Remains()
        if newest == 0:  # A run keeps the samples per step of the first life that commits anything.
            self.settings["accumulate"] = PER_STEP // (BATCH * life.ranks)
        try:
            codes = self.run(folder, life, remains)
            remains.assert_nothing(within_s=GRACE_S)
        finally:
            remains.kill()
        if life.signal == signal.SIGKILL:
            killed = [code == -signal.SIGKILL for code in codes]
            assert killed == [rank in life.receivers for rank in range(life.ranks)], codes
            assert not {0, None} & set(codes), (codes, printed(folder, life.ranks))
        else:
            assert set(codes) == {143 if life.signal else 0}, (codes, printed(folder, life.ranks))
            assert self.newest() == trace(folder)[-1][1], f"the last step is stored: {printed(folder, life.ranks)}"
        assert_whole(self.store)
        self.write_down(folder, life, newest)
        if not life.keeps_disk:
            shutil.rmtree(self.settings["config"]["local_dir"], ignore_errors=True)

    def run(self, folder, life, remains):
        """Start the training, make its store sick for a while and interrupt it. Return the exit codes."""
        healer = threading.Timer(life.fault_s, self.proxy.heal)

        def fall_ill():
            FAULTS[life.fault](self.proxy)
            healer.start()

        def until_trained(num_steps):
            is_over = lambda: any(process.exitcode is not None for process in processes)  # noqa: E731
            until(lambda: num_trained(folder) >= num_steps or is_over(), f"{num_steps} steps are trained")
            assert num_trained(folder) >= num_steps, printed(folder, life.ranks)

        if life.fault_after_steps == 0:
            fall_ill()
        settings = {**self.settings, "ranks": life.ranks}
        processes = launch_ranks("elastic_train", folder, settings, remains.environment)
        remains.sessions |= {process.pid for process in processes}
        if life.fault_after_steps > 0:
            until_trained(life.fault_after_steps)
            fall_ill()
        if life.signal:
            until_trained(life.after_steps)
            for rank in life.receivers:
                os.kill(processes[rank].pid, life.signal)
            if life.signal == signal.SIGKILL and len(life.receivers) == life.ranks:
                remains.kill()
        codes = exit_codes(processes, timeout=90 if life.signal else 900)
        healer.join()
        return codes

    def write_down(self, folder, life, newest):
        """Check that *newest* and all that this life has committed is not lost. Take note of what it has trained."""
        committed = [{event["step"] for event in events_of(folder, rank, "Committed")} for rank in range(life.ranks)]
        assert self.newest() >= max(set.intersection(*committed), default=0), "a step of all ranks is lost"
        [attempt] = {e["attempt"] for rank in range(life.ranks) for e in events_of(folder, rank, "AttemptStarted")}
        resumed = [
            [(event["step"], event["from_attempt"]) for event in events_of(folder, rank, "Resumed")]
            for rank in range(life.ranks)
        ]
        assert resumed == [resumed[0]] * life.ranks
        [(step, from_attempt)] = resumed[0] or [(0, None)]
        assert step >= newest, "a committed step is lost"
        before = [row for row in self.histories.get(from_attempt, []) if row[1] <= step]
        self.histories[attempt] = before + trace(folder)


def trace(folder):
    """Return the whole lines of the trace in *folder*."""
    return [json.loads(line) for line in said(folder / "trace.jsonl").rpartition("\n")[0].splitlines()]


def num_trained(folder):
    """Return the number of optimizer steps that have begun."""
    return len({step for _, step, *_ in trace(folder)})


def trained_alone(settings):
    """
    Return the samples and the loss of each step of the same training, as a plain loop of torch.

    Accelerate makes a step of the schedule for each rank of the life that the settings are from.
    """
    model, points, sampler, steps = net(settings), Points(SAMPLES), ElasticSampler(SAMPLES, seed=7), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = schedule_of(optimizer)
    schedule_steps = PER_STEP // (BATCH * settings.accumulate) if settings.host == "accelerate" else 1
    for epoch in range(settings.epochs):
        sampler.set_epoch(epoch)
        for samples in torch.tensor(list(sampler)).split(PER_STEP):
            loss = nn.functional.cross_entropy(model(points.x[samples]), points.y[samples])
            loss.backward()
            optimizer.step()
            for _ in range(schedule_steps):
                schedule.step()
            optimizer.zero_grad()
            steps[epoch, len(steps) + 1] = sorted(samples.tolist()), loss.item()
    return steps


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("host", ["accelerate", "lightning"])
def test_interruptions_one_after_the_other_lose_nothing(host, seed, s3_server, tmp_path):
    """
    Notices to one rank or to all, ranks that are killed, machines that vanish. No committed step is lost, and a notice
    loses no step at all. In the end each sample was trained once per epoch, with the losses of a training left alone.
    The report says what the raw lines of the event log say.
    """
    draw = random.Random(f"{host} {seed}")
    lives = [*(drawn_life(draw) for _ in range(NUM_INTERRUPTIONS)), drawn_life(draw, [None])]
    epochs = 10 + sum(life.after_steps for life in lives) * PER_STEP // SAMPLES  # a notice may come some steps later
    url = f"{s3_server.create_bucket(f'soak-{host}-{seed}')}/run"
    with FaultProxy(s3_server.endpoint_url) as proxy:
        options = s3_server.storage_options(endpoint_url=proxy.endpoint_url, connect_timeout=1, read_timeout=1)
        config = {"every_steps": 5, "grace_seconds": GRACE_S, "storage_options": options}
        config["local_dir"] = str(tmp_path / "disk")
        settings = {"host": host, "samples": SAMPLES, "epochs": epochs, "batch": BATCH, "url": url, "config": config}
        soak = Soak(tmp_path, settings, proxy, open_store(url, s3_server.storage_options()))
        for number, life in enumerate(lives):
            print(f"life {number} of seed {seed}: {life}")
            soak.live(tmp_path / f"life-{number}", life)

    events = {key: soak.store.get(key) for key in soak.store.keys("events/")}
    environment = {
        "AWS_ACCESS_KEY_ID": S3Server.KEY,
        "AWS_SECRET_ACCESS_KEY": S3Server.SECRET,
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
    }
    agrees(url, recount(events), environment)

    steps = samples_by_step(soak.histories[max(soak.histories)])
    for epoch in range(epochs):
        seen = Counter(sample for key, (samples, _) in steps.items() if key[0] == epoch for sample in samples)
        assert seen == Counter(range(SAMPLES)), f"each sample once in epoch {epoch}"
    alone = trained_alone(Settings(folder=str(tmp_path), **soak.settings))
    assert {key: samples for key, (samples, _) in steps.items()} == {
        key: samples for key, (samples, _) in alone.items()
    }
    for key, (_, loss) in alone.items():
        assert steps[key][1] == pytest.approx(loss, abs=1e-5), key
