"""
What it costs the training thread that all ranks agree, two ways beside each other, with real processes.

    python benchmarks/agree.py --ranks 2 4 --json

*Board* is what spot_plugins does: background threads and a store of notes. *All-reduce* is what it was compared with:
at the end of step k every rank starts an all-reduce (MAX) of a flag on a gloo group of its own, and reads that of step
k - 1. It is written down here only. *Nothing* is an empty call, which shows what the machine makes of any.

Every rank computes on one thread and exchanges gradients, so the ranks move in step as under DDP. Printed are, over
all ranks: microseconds of the training thread at a quiet boundary, at one where a periodic save was agreed on, and for
each note that it wrote; and how soon after a notice to one rank all have stopped at the same step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from spot_plugins import __version__
from spot_plugins.agreement import Crew, Notice
from spot_plugins.clock import SystemClock
from spot_plugins.ranks import TorchRanks
from spot_plugins.triggers import PeriodicTrigger

SAVE_EVERY = 20  # steps
GRADIENTS = 250_000  # numbers, 1 MB


class TimedBoard:
    """Measures how long the training thread is held up by writing notes; background threads do as they like."""

    def __init__(self, board):
        self.board = board
        self.read = board.read
        self.close = board.close
        self.took_us = []

    def take_number(self, name):
        return self.timed(self.board.take_number, name)

    def post(self, name, value):
        self.timed(self.board.post, name, value)

    def timed(self, use, *arguments):
        started = time.perf_counter()
        result = use(*arguments)
        if threading.current_thread() is threading.main_thread():
            self.took_us.append((time.perf_counter() - started) * 1e6)
        return result


class Board:
    """The agreement of the product, as a session uses it."""

    def __init__(self, ranks, save_every):
        self.board = TimedBoard(ranks.open_board())
        trigger = PeriodicTrigger(save_every, None, SystemClock())
        self.crew = Crew(ranks, self.board, trigger, lambda: True, lambda step: None, lambda: None)
        self.crew.saved(0)

    def notify(self):
        self.crew.notify(Notice("benchmark", time.monotonic() + 30))

    def at_boundary(self, step):
        decision = self.crew.at_boundary(step)
        return None if decision is None else decision.trigger

    def saved(self, step):
        self.crew.saved(step)

    def notes_us(self):
        return self.board.took_us

    def close(self):
        self.crew.close()
        self.board.close()


class Nothing:
    """What it costs to measure: an empty call at the same place, with what the step left of the caches."""

    def __init__(self, ranks, save_every):
        pass

    def at_boundary(self, step):
        return None

    def notes_us(self):
        return []

    def close(self):
        pass


class AllReduce:
    """One flag says: somebody has a notice. Steps to save at need no agreement, they are counted alike everywhere."""

    def __init__(self, ranks, save_every):
        self.group = dist.new_group(backend="gloo")
        self.save_every = save_every
        self.noticed = False
        self.flags = torch.zeros(1, dtype=torch.int32)
        self.running = None

    def notify(self):
        self.noticed = True

    def at_boundary(self, step):
        if self.running is not None:
            self.running.wait()
        if self.running is not None and self.flags.item():
            return "notice"
        self.flags = torch.full((1,), int(self.noticed), dtype=torch.int32)
        self.running = dist.all_reduce(self.flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return "steps" if self.save_every and step % self.save_every == 0 else None

    def saved(self, step):
        pass

    def notes_us(self):
        return []

    def close(self):
        dist.barrier()
        dist.destroy_process_group(self.group)


class Training:
    """Steps of a given length, whose gradients no rank gets before all have computed theirs."""

    def __init__(self, step_s):
        self.step_s = step_s
        self.weights = torch.randn(128, 128)
        self.gradients = torch.zeros(GRADIENTS)

    def step(self):
        end = time.perf_counter() + self.step_s
        while time.perf_counter() < end:
            self.weights @ self.weights
        dist.all_reduce(self.gradients)


def measure_steps(way, training, ranks, num_steps):
    """Return the microseconds of this rank's boundaries: quiet ones, ones with a save, and notes written there."""
    agreement = way(ranks, SAVE_EVERY)
    quiet, saves = [], []
    for step in range(1, num_steps + 1):
        training.step()
        started = time.perf_counter()
        decision = agreement.at_boundary(step)
        took = (time.perf_counter() - started) * 1e6
        (quiet if decision is None else saves).append(took)
        if decision is not None:
            agreement.saved(step)
    dist.barrier()
    agreement.close()
    return quiet, saves, agreement.notes_us()


def measure_notice(way, training, ranks, after_s):
    """Tell the last rank, *after_s* later. Return where this one stopped, and where and when the last one was told."""
    agreement = way(ranks, None)
    told = []
    step = 0

    def tell():
        told.append((step, time.monotonic()))
        agreement.notify()

    for step in range(1, 5):
        training.step()
        assert agreement.at_boundary(step) is None
    timer = threading.Timer(after_s, tell)
    if ranks.rank == ranks.world_size - 1:
        timer.start()
    decision = None
    while decision is None:
        training.step()
        step += 1
        decision = agreement.at_boundary(step)
    stopped = (step, time.monotonic())
    dist.barrier()
    agreement.close()
    return stopped, told


def measure_notices(way, training, ranks, num_notices):
    """Return how many steps behind the one in which the notice came all stopped, and how many seconds after it."""
    late_s, late_steps = [], []
    for number in range(num_notices):
        stopped, told = measure_notice(way, training, ranks, training.step_s * (1 + number / num_notices))
        stops, told = gather(([stopped], told))
        ((told_step, told_at),) = told
        assert len({step for step, _ in stops}) == 1, "all stop at one step"
        late_steps.append(stops[0][0] - told_step - 1)
        late_s.append(max(at for _, at in stops) - told_at)
    return {
        "notice_median_s": statistics.median(late_s),
        "notice_max_s": max(late_s),
        "notice_max_steps": max(late_steps),
    }


def p95(values):
    return statistics.quantiles(values, n=20)[-1]


def run_rank(rank, world_size, folder, arguments):
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # the board is served there, and nowhere else
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world_size}", rank=rank, world_size=world_size)
    ranks, training = TorchRanks(), Training(arguments.step_ms / 1000)
    rows = {}
    for way in (Nothing, AllReduce, Board):
        quiet, saves, notes = gather(measure_steps(way, training, ranks, arguments.steps))
        row = rows[way.__name__] = {"quiet_median_us": statistics.median(quiet), "quiet_p95_us": p95(quiet)}
        if saves:
            row |= {"save_median_us": statistics.median(saves), "save_p95_us": p95(saves)}
        if notes:
            row |= {"note_median_us": statistics.median(notes), "note_p95_us": p95(notes)}
        if way is not Nothing:
            row |= measure_notices(way, training, ranks, arguments.notices)
    if rank == 0:
        with open(f"{folder}/rows-{world_size}", "w") as file:
            json.dump(rows, file)
    dist.destroy_process_group()


def gather(lists):
    """Return this rank's lists, each joined with those of all other ranks."""
    everybody = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, [*lists])
    return [list(itertools.chain(*parts)) for parts in zip(*everybody, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--steps", type=int, default=400, help="steps per way")
    parser.add_argument("--step-ms", type=float, default=10.0, help="length of a step")
    parser.add_argument("--notices", type=int, default=10, help="notices per way")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON too")
    arguments = parser.parse_args()
    print(
        f"spot_plugins {__version__}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"steps of {arguments.step_ms:g} ms, {arguments.steps} steps and {arguments.notices} notices per way"
    )
    results = {}
    with tempfile.TemporaryDirectory(prefix="spot-bench-") as folder:
        for world_size in arguments.ranks:
            mp.spawn(run_rank, (world_size, folder, arguments), nprocs=world_size)
            with open(f"{folder}/rows-{world_size}") as file:
                results[world_size] = json.load(file)
    for world_size, rows in results.items():
        for way, row in rows.items():
            figures = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
            print(f"{world_size} ranks, {way}: {figures}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
