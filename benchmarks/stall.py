"""
The cost of one checkpoint for the training loop, beside other checkpointers.

Each way trains the same model in its own process, in blocks of steps. Quiet blocks and blocks with one save before the
first step take turns. A block with a save continues until the save is on disk. *Lost* is the time that such a block
took longer than its steps would have taken in the two quiet blocks around it. It includes the stall of the call and
every slowdown after it. The figure is the mean with its 95 % interval over all saves. CPU seconds are differences of
the same kind.

Memory is measured in one more save after the others. It is the peak of the training process and its children together,
less their peak before the way to save existed, relative to the state. *Step* is the median in quiet blocks. *Before* is
the median before the first save, because some ways slow down all later steps. On several ranks, figures in seconds are
those of the slowest rank. CPU and memory are sums.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import ranks, usage, ways
from .report import Column, Report, mean_and_interval
from .state import Training

COLUMNS = [
    Column("stall_s", "stall s", ratio=True),
    Column("stall_us_per_tensor", "us/tensor", ".1f"),
    Column("lost_s", "lost s", ratio=True),
    Column("lost_interval_s", "+-"),
    Column("durable_s", "on disk s", ".2f", ratio=True),
    Column("cpu_s_per_gb", "CPU s/GB", ".2f"),
    Column("children_cpu_s_per_gb", "children", ".2f"),
    Column("memory_ratio", "memory x", ".2f", ratio=True),
    Column("first_stall_s", "first stall s", ".2f"),
    Column("step_s", "step s"),
    Column("step_before_s", "before"),
    Column("num_saves", "saves", "d"),
]


def add_arguments(parser):
    parser.add_argument("--gb", type=float, default=1.0, help="size of the state in GB")
    parser.add_argument("--tensors", type=int, help="tensors in the state, about; by default as a large model has")
    parser.add_argument("--ranks", type=int, default=1, help="processes, with DDP over gloo or NCCL")
    parser.add_argument("--saves", type=int, default=4, help="saves per way, at least")
    parser.add_argument("--steps", type=int, default=6, help="steps in a block, at least")
    parser.add_argument("--interval", type=float, default=0.03, help="half the 95 %% interval that is enough, seconds")
    parser.add_argument("--max-s", type=float, default=15.0, help="seconds per way after which no save is added")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", help="where to save; the system's temporary folder by default")
    ways.add_flag(parser)


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("gb", "tensors", "ranks", "device", "steps")}
    if arguments.tensors is None:
        del settings["tensors"]
    report = Report("stall", settings, COLUMNS)
    for number, name in enumerate(arguments.ways, start=1):
        reason = ways.why_not(name, arguments.device)
        if reason is not None:
            report.not_run[name] = reason
            continue
        started = time.monotonic()
        try:
            report.rows.append({"way": name, **_measure_one(name, arguments)})
        except RuntimeError as error:
            report.fail(name, error)
        print(f"[{number}/{len(arguments.ways)}] {name}: {time.monotonic() - started:.0f} s", flush=True)
    return report


def _measure_one(name, arguments):
    folder = Path(tempfile.mkdtemp(prefix="spot-bench-", dir=arguments.folder))
    try:
        group = ways.find(name).needs_group
        return ranks.run(_train, arguments.ranks, name, folder, arguments, group=group)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(name, folder, arguments):
    world_size = ranks.current()[1]
    kind = ways.find(name)
    training = Training(
        arguments.gb, arguments.device, world_size=world_size, wrap=not kind.wraps, num_tensors=arguments.tensors
    )
    before = None if kind.wraps else _quiet_peak(training)
    way = kind(training, folder)  # buffers and processes that it creates now count
    before = before or _quiet_peak(training)
    measured = []
    way.run(lambda: measured.append(_Measurement(way, arguments, before).run()))
    way.close()
    return measured[0]


def _quiet_peak(training):
    with usage.MemoryPeak() as peak:
        for _ in range(2):
            training.step()
    return peak


@dataclass
class _Block:
    steps_s: float
    num_steps: int
    cpu_s: float
    stall_s: float = 0.0
    durable_s: float = 0.0


class _Measurement:
    """The measurement of one way on one rank. All ranks train the same steps."""

    def __init__(self, way, arguments, before):
        self.way = way
        self.before = before
        self.training = way.training
        self.arguments = arguments
        self.gb = self.training.num_bytes() / 1e9

    def run(self):
        self._block(saves=False, num_steps=2)  # the first steps are slow
        alone = self._block(saves=False)
        first_stall_s = self._block(saves=True, num_steps=2).stall_s
        quiet, saving, children_s = self._in_turn()
        num_bytes, num_device_bytes = self._memory()
        lost, cpu = _differences(quiet, saving)
        mean, interval = mean_and_interval(self._slowest(lost))
        cpu_s = sum(ranks.gather(statistics.fmean(cpu)))
        stall_s = statistics.median(self._slowest([block.stall_s for block in saving]))
        num_tensors = len(self.training.tensors())
        return {
            "stall_s": stall_s,
            "stall_us_per_tensor": stall_s / num_tensors * 1e6,
            "lost_s": mean,
            "lost_interval_s": interval,
            "lost_median_s": statistics.median(self._slowest(lost)),
            "durable_s": statistics.median(self._slowest([block.durable_s for block in saving])),
            "cpu_s_per_gb": cpu_s / self.gb,
            "children_cpu_s_per_gb": sum(ranks.gather(children_s)) / len(saving) / self.gb,
            "memory_ratio": sum(ranks.gather(num_bytes)) / (self.gb * 1e9),
            "device_memory_ratio": sum(ranks.gather(num_device_bytes)) / (self.gb * 1e9),
            "first_stall_s": max(ranks.gather(first_stall_s)),
            "step_s": statistics.median(block.steps_s / block.num_steps for block in quiet),
            "step_before_s": alone.steps_s / alone.num_steps,
            "num_saves": len(saving),
            "state_gb": self.gb,
            "num_tensors": num_tensors,
        }

    def _in_turn(self):
        """Return the quiet blocks, the blocks with a save between them, and the CPU seconds of all children."""
        quiet, saving = [self._block(saves=False)], []
        children_s = usage.children_cpu_s()
        started = time.monotonic()
        while self._continues(quiet, saving, time.monotonic() - started):
            saving.append(self._block(saves=True))
            quiet.append(self._block(saves=False))
        return quiet, saving, usage.children_cpu_s() - children_s

    def _continues(self, quiet, saving, spent_s):
        """Return True if another save is measured. Rank 0 decides for all ranks."""
        enough = len(saving) >= self.arguments.saves
        if enough and spent_s < self.arguments.max_s and len(saving) > 1:
            enough = mean_and_interval(_differences(quiet, saving)[0])[1] <= self.arguments.interval
        return not ranks.gather(enough)[0]

    def _block(self, *, saves, num_steps=None):
        """Train *num_steps*. With *saves*, train until the save is on the disk of every rank, but not fewer steps."""
        num_steps = num_steps or self.arguments.steps
        block = _Block(0.0, 0, 0.0)
        cpu_s = usage.own_cpu_s()
        saved = None
        if saves:
            self.training.synchronize()
            started = time.perf_counter()
            step = self.training.num_steps
            saved = self.way.save(step)
            block.stall_s = time.perf_counter() - started
        while block.num_steps < num_steps or (saved and not all(ranks.gather(saved.done))):
            stepped = time.perf_counter()
            self.training.step(self.way.guard)
            self.way.after_step(self.training.num_steps)
            block.steps_s += time.perf_counter() - stepped
            block.num_steps += 1
        block.cpu_s = usage.own_cpu_s() - cpu_s
        if saved:
            saved.wait()
            block.durable_s = saved.at - started
            self._forget(step)
        return block

    def _memory(self):
        """Return the bytes of one more save beyond a training without this way, in host memory and on the device."""
        with usage.MemoryPeak() as peak:
            self._block(saves=True, num_steps=2)
        return peak.num_bytes - self.before.num_bytes, peak.num_device_bytes - self.before.num_device_bytes

    def _forget(self, step):
        ranks.gather(None)  # wait until all ranks have saved
        if ranks.current()[0] == 0:
            self.way.forget(step)

    def _slowest(self, values):
        """Return for each save the highest value of all ranks."""
        return [max(of_one_save) for of_one_save in zip(*ranks.gather(values), strict=True)]


def _differences(quiet, saving):
    """Return the extra seconds and extra CPU seconds of each block with a save, beyond those of its steps."""
    lost, cpu = [], []
    for before, block, after in zip(quiet, saving, quiet[1:], strict=False):
        num_quiet = before.num_steps + after.num_steps
        lost.append(block.stall_s + block.steps_s - block.num_steps * (before.steps_s + after.steps_s) / num_quiet)
        cpu.append(block.cpu_s - block.num_steps * (before.cpu_s + after.cpu_s) / num_quiet)
    return lost, cpu
