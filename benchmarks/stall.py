"""
What one checkpoint costs the training loop, beside what people use otherwise, in one run on one state.

    python benchmarks/stall.py --mb 500 --saves 5

Each way saves the same state (a model and its Adam state) several times from the same loop of real training steps.
Printed are medians: the stall of the call, how much slower the following steps were in sum, the time until the
bytes were on the local disk, and, for spot_plugins, the cost of a step in which nothing is saved.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from spot_plugins import __version__
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart

STEPS_BEHIND = 5  # steps after each save in which a slowdown is looked for


class Training:
    """A loop of real steps whose state is about *num_mb* MB: a model, and twice as much of Adam."""

    def __init__(self, num_mb):
        torch.manual_seed(0)
        width = 1024
        layers = max(1, round(num_mb * 1e6 / (3 * 4 * width * width)))
        self.model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.batch = torch.randn(64, width)
        self.step()

    def step(self):
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()
        return time.perf_counter() - started

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    @property
    def num_bytes(self):
        tensors = [*self.model.state_dict().values()]
        tensors += [v for s in self.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        return sum(t.numel() * t.element_size() for t in tensors)


def with_torch_save(training, folder, number):
    torch.save(training.state(), folder / f"{number}.pt")
    return lambda: None


def with_dcp_async(training, folder, number):
    future = dcp.async_save(training.state(), checkpoint_id=str(folder / str(number)))
    return future.result


class WithSpot:
    """The session itself, without a host around it."""

    def __init__(self, training, folder):
        self.committed = threading.Event()
        config = SpotConfig(url=f"file://{folder}/run", every_steps=10**9)
        self.session = SpotSession(config, hooks=[self.hear])
        self.session.register("model", ModelPart(training.model), replicated=("parameters",))
        self.session.register("optimizer", OptimizerPart(training.optimizer, training.model), replicated=("state",))
        self.session.resume()
        self.step = 0

    def hear(self, event):
        if isinstance(event, Committed):
            self.committed.set()

    def __call__(self, training, folder, number):
        self.committed.clear()
        self.step += 1
        self.session.save(self.step)
        return self.committed.wait

    def quiet_step_s(self, rounds=10000):
        started = time.perf_counter()
        for _ in range(rounds):
            self.step += 1
            self.session.after_step(self.step)
        return (time.perf_counter() - started) / rounds


def measure(save, training, folder, num_saves):
    """Return the medians of stall, slowdown of the steps behind, and time until durable, all in seconds."""
    save(training, folder, -1)()  # the first one pays for buffers and imports
    stalls, slowdowns, durables = [], [], []
    for number in range(num_saves):
        quiet = sum(training.step() for _ in range(STEPS_BEHIND))
        started = time.perf_counter()
        wait = save(training, folder, number)
        stalls.append(time.perf_counter() - started)
        slowdowns.append(sum(training.step() for _ in range(STEPS_BEHIND)) - quiet)
        wait()
        durables.append(time.perf_counter() - started)
    return [statistics.median(values) for values in (stalls, slowdowns, durables)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=500.0, help="size of the state in MB")
    parser.add_argument("--saves", type=int, default=5, help="saves per way; medians are printed")
    arguments = parser.parse_args()
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    training = Training(arguments.mb)
    root = Path(tempfile.mkdtemp(prefix="spot-bench-"))
    rows = {}
    try:
        ways = {"torch.save": with_torch_save, "DCP async_save": with_dcp_async}
        for name, save in ways.items():
            rows[name] = measure(save, training, root, arguments.saves)
        spot = WithSpot(training, root)
        rows["spot_plugins"] = measure(spot, training, root, arguments.saves)
        quiet_step_s = spot.quiet_step_s()
        spot.session.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
        dist.destroy_process_group()
    print(
        f"spot_plugins {__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, state {training.num_bytes / 1e6:.0f} MB, medians of {arguments.saves}"
    )
    print(f"{'way':16} {'stall s':>9} {'slower s':>9} {'durable s':>10}")
    for name, (stall_s, slower_s, durable_s) in rows.items():
        print(f"{name:16} {stall_s:9.3f} {slower_s:9.3f} {durable_s:10.2f}")
    print(f"a step in which nothing is saved costs {quiet_step_s * 1e6:.2f} microseconds")
    print(json.dumps({"rows": rows, "quiet_step_s": quiet_step_s, "num_bytes": training.num_bytes}))


if __name__ == "__main__":
    main()
