"""
The cost of a step without a save: the session alone, its fingerprints, Lightning's callback, Accelerate's hook.

The session's call is timed in a tight loop, and as the difference between steps of a small training with and without
it. The cost of a host's plugin is such a difference too. Steps with and without it take turns. The median step of each
turn counts. The figure is the mean difference of all turns, with its 95 % interval, in microseconds. On several ranks
it is that of rank 0.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from spot_plugins.events import EventBus
from spot_plugins.fingerprints import Recorder, RingId
from spot_plugins.guard import Guard, Host
from spot_plugins.state import OptimizerPart
from spot_plugins.state.registry import Registry, register_model
from spot_plugins.store import LocalDisk

from . import ranks
from .report import Column, Report, mean_and_interval
from .state import Training
from .ways.spot import NEVER, Spot

TINY_GB = 1e-4
WARM_UP = 20  # first steps of a turn, which do not count

COLUMNS = [
    Column("added_us", "added us", ".1f"),
    Column("interval_us", "+-", ".1f"),
    Column("step_us", "step us", ".0f"),
]


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, default=1, help="processes; the hosts are measured on one alone")
    parser.add_argument("--steps", type=int, default=400, help="steps in a turn")
    parser.add_argument("--saves", type=int, default=6, help="turns with, and as many without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("ranks", "device", "steps", "saves")}
    report = Report("overhead", settings, COLUMNS)
    measured = {"session, tight loop": (_call_session, arguments.ranks), "session": (_in_plain_loop, arguments.ranks)}
    measured |= {"fingerprints, tight loop": (_take_fingerprints, arguments.ranks)}
    measured |= {"guard, tight loop": (_call_guard, 1)}
    measured |= {"Lightning SpotCheckpoint": (_in_lightning, 1), "Accelerate SpotHook": (_in_accelerate, 1)}
    with tempfile.TemporaryDirectory(prefix="spot-bench-") as folder:
        for name, (measure, world_size) in measured.items():
            run_folder = Path(folder, name.replace(" ", "-"))
            report.rows.append({"way": name, **ranks.run(measure, world_size, run_folder, arguments)})
            print(f"{name}: {report.rows[-1]['added_us']:.1f} microseconds", flush=True)
    return report


def _call_session(folder, arguments):
    training = Training(TINY_GB, arguments.device, world_size=ranks.current()[1])
    spot = Spot(training, folder)
    rounds = []
    step = training.num_steps
    for _ in range(arguments.saves):
        started = time.perf_counter()
        for _ in range(arguments.steps):
            step += 1
            spot.after_step(step)
        rounds.append((time.perf_counter() - started) / arguments.steps * 1e6)
        ranks.gather(None)
    spot.close()
    added, interval = mean_and_interval(rounds)
    return {"added_us": added, "interval_us": interval, "step_us": added}


def _take_fingerprints(folder, arguments):
    """Time the fingerprints alone. They are a part of the session's call."""
    training = Training(TINY_GB, arguments.device, world_size=ranks.current()[1])
    # No pusher process has its file: to write it is no part of a step.
    recorder = Recorder(str(folder), LocalDisk(None), RingId(1, *ranks.current()), EventBus(), lambda file: None)
    recorder.begin(None, [OptimizerPart(training.optimizer, training.model)])
    rounds = []
    for number in range(arguments.saves):
        started = time.perf_counter()
        for step in range(number * arguments.steps, (number + 1) * arguments.steps):
            recorder.record(step, (0, step), 1)
        rounds.append((time.perf_counter() - started) / arguments.steps * 1e6)
        ranks.gather(None)
    recorder.close()
    added, interval = mean_and_interval(rounds)
    return {"added_us": added, "interval_us": interval, "step_us": added}


def _call_guard(folder, arguments):
    """Time all that the guard does for a step of one optimizer, on its own. Every host has the same guard."""
    module = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(module.parameters())
    registry = Registry()
    register_model(registry.add, module, [optimizer])
    rounds = []
    for _ in range(arguments.saves):
        guard = Guard(Host(), registry)
        guard.open(speaks=True)
        guard.begin(None)
        steps = guard._steps
        started = time.perf_counter()
        for step in range(1, arguments.steps + 1):
            guard.before_step(step)
            steps._count(optimizer, (), {})  # as torch's hook does; it calls the guard
            guard.after_step()
        rounds.append((time.perf_counter() - started) / arguments.steps * 1e6)
        guard.close()
    added, interval = mean_and_interval(rounds)
    return {"added_us": added, "interval_us": interval, "step_us": added}


def _in_turn(arguments, turn):
    """Compare ``turn(number, with_spot)``, which returns the seconds of its steps, with and without spot_plugins."""
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other would dominate
    differences, quiet = [], []
    turn(0, False)  # a warm-up, for imports
    for number in range(1, arguments.saves + 1):
        # The order changes with each turn, because the second one may find warmer caches.
        medians = {spot: statistics.median(turn(number, spot)[WARM_UP:]) for spot in (number % 2 == 0, number % 2 == 1)}
        differences.append((medians[True] - medians[False]) * 1e6)
        quiet.append(medians[False] * 1e6)
    added, interval = mean_and_interval(differences)
    return {"added_us": added, "interval_us": interval, "step_us": statistics.median(quiet)}


def _in_plain_loop(folder, arguments):
    world_size = ranks.current()[1]

    def turn(number, with_spot):
        training = Training(TINY_GB, arguments.device, world_size=world_size)
        spot = Spot(training, folder / f"{number}") if with_spot else None
        times = []
        for _ in range(WARM_UP + arguments.steps):
            started = time.perf_counter()
            training.step()
            if spot is not None:
                spot.after_step(training.num_steps)
            times.append(time.perf_counter() - started)
        ranks.gather(None)
        if spot is not None:
            spot.close()
        return times

    return _in_turn(arguments, turn)


def _in_lightning(folder, arguments):
    import lightning.pytorch as pl

    from spot_plugins.lightning import SpotCheckpoint

    from .ways.hosts import quieten

    quieten()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(64, 64)
            self.times = []

        def training_step(self, batch, batch_idx):
            self.times.append(time.perf_counter())
            return self.model(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    def turn(number, with_spot):
        module = Module()
        trainer = pl.Trainer(
            accelerator="gpu" if arguments.device == "cuda" else "cpu",
            devices=1,
            max_steps=WARM_UP + arguments.steps + 1,
            max_epochs=-1,
            callbacks=[SpotCheckpoint(f"file://{folder}/{number}", every_steps=NEVER)] if with_spot else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, _batches(arguments))
        return [later - earlier for earlier, later in itertools.pairwise(module.times)]

    return _in_turn(arguments, turn)


def _in_accelerate(folder, arguments):
    from accelerate import Accelerator

    from spot_plugins.accelerate import SpotHook

    accelerator = Accelerator(cpu=arguments.device == "cpu")

    def turn(number, with_spot):
        model = nn.Linear(64, 64)
        optimizer = torch.optim.AdamW(model.parameters())
        accelerator.free_memory()
        times = []
        with contextlib.ExitStack() as stack:
            spot = None
            if with_spot:
                spot = stack.enter_context(SpotHook(accelerator, f"file://{folder}/{number}", every_steps=NEVER))
            model, optimizer, loader = accelerator.prepare(model, optimizer, _batches(arguments))
            if spot is not None:
                spot.resume()
            for _ in spot.epochs(1) if spot is not None else range(1):
                for batch in spot.batches(loader) if spot is not None else loader:
                    times.append(time.perf_counter())
                    loss = model(batch[0]).square().mean()
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    if spot is not None:
                        spot.after_step()
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    return _in_turn(arguments, turn)


def _batches(arguments):
    num_batches = WARM_UP + arguments.steps + 1
    data = torch.utils.data.TensorDataset(torch.randn(num_batches * 8, 64))
    return DataLoader(data, batch_size=8)
