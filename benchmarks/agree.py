"""
The cost of the agreement of all ranks for the training thread, with real processes.

*Board* is the agreement of spot_plugins, with background threads and a store of notes. *All-reduce* is an alternative
that exists only here. At the end of step k every rank starts an all-reduce (MAX) of a flag on its own gloo group, and
reads the flag of step k - 1. *Nothing* is an empty call, which shows the cost of the measurement.

Every rank computes on one thread and exchanges gradients, so the ranks run in lockstep as under DDP. The figures are
over all ranks. They are microseconds of the training thread at a quiet boundary, at a boundary with a periodic save and
for each note that is written, and seconds from a notice to one rank until all ranks have stopped at the same step.
"""

from __future__ import annotations

import statistics
import threading
import time

import torch
import torch.distributed as dist

from spot_plugins.agreement import Group, Notice
from spot_plugins.clock import SystemClock
from spot_plugins.ranks import Job, TorchRanks
from spot_plugins.schedule import PeriodicTrigger

from . import ranks
from .report import Column, Report

SAVE_EVERY = 20  # steps
GRADIENTS = 250_000  # numbers, 1 MB
WAYS = {"Board": "spot_plugins board", "AllReduce": "all-reduce", "Nothing": "empty call"}

COLUMNS = [
    Column("quiet_median_us", "quiet us", ".1f", ratio=True),
    Column("quiet_p95_us", "p95", ".0f"),
    Column("save_median_us", "with a save us", ".1f", ratio=True),
    Column("save_p95_us", "p95", ".0f"),
    Column("note_median_us", "note us", ".1f"),
    Column("notice_median_s", "notice to stop s", ratio=True),
    Column("notice_max_s", "longest"),
    Column("notice_max_steps", "steps", "d"),
]


class TimedBoard:
    """A board that measures how long the training thread waits for its notes to be written."""

    def __init__(self, board):
        self.board = board
        self.read = board.read
        self.gather = board.gather
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


class Participant:
    """A training that can always save, and trains on while a notice leaves time."""

    def is_ready(self):
        return True

    def on_deferred(self, step):
        pass

    def on_notice(self):
        pass

    def leave_in_pause(self):
        pass

    def figures(self):
        return None

    def merge(self, figures):
        pass

    def decide(self, step, notice, num_ahead):
        return "train"


class Board:
    """The agreement of the product, as a session uses it."""

    def __init__(self, ranks, save_every):
        self.board = TimedBoard(ranks.open_board())
        trigger = PeriodicTrigger(save_every, None, SystemClock())
        self.group = Group(Job(ranks, self.board), trigger, Participant())
        self.group.open()
        self.group.saved(0)

    def notify(self):
        self.group.notify(Notice("benchmark", time.monotonic() + 30))

    def at_boundary(self, step):
        decision = self.group.at_boundary(step)
        return None if decision is None else decision.trigger

    def saved(self, step):
        self.group.saved(step)

    def notes_us(self):
        return self.board.took_us

    def close(self):
        self.group.close()
        self.board.close()


class Nothing:
    """An empty call, which shows the cost of the measurement with the caches as a step leaves them."""

    def __init__(self, ranks, save_every):
        pass

    def at_boundary(self, step):
        return None

    def notes_us(self):
        return []

    def close(self):
        pass


class AllReduce:
    """An all-reduce of a flag that a notice sets. Saves need no agreement, because all ranks count steps alike."""

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
    """Steps of a given length, each with an all-reduce of gradients."""

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
    """Return the microseconds of this rank's quiet boundaries, of those with a save, and of the notes written there."""
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
    """Notify the last rank after *after_s* seconds. Return step and time of this rank's end and of the notice."""
    agreement = way(ranks, None)
    notified = []
    step = 0

    def notify():
        notified.append((step, time.monotonic()))
        agreement.notify()

    for step in range(1, 5):
        training.step()
        assert agreement.at_boundary(step) is None
    timer = threading.Timer(after_s, notify)
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
    return stopped, notified


def measure_notices(way, training, here, num_notices):
    """Measure the seconds and steps from a notice until all ranks have stopped."""
    late_s, late_steps = [], []
    for number in range(num_notices):
        stopped, notified = measure_notice(way, training, here, training.step_s * (1 + number / num_notices))
        stops, notified = ranks.joined(([stopped], notified))
        ((notified_step, notified_at),) = notified
        assert len({step for step, _ in stops}) == 1, "all stop at one step"
        late_steps.append(stops[0][0] - notified_step - 1)
        late_s.append(max(at for _, at in stops) - notified_at)
    return {
        "notice_median_s": statistics.median(late_s),
        "notice_max_s": max(late_s),
        "notice_max_steps": max(late_steps),
    }


def p95(values):
    return statistics.quantiles(values, n=20)[-1]


def measure(arguments):
    """Return the figures of all ways, over all ranks."""
    torch.set_num_threads(1)
    here, training = TorchRanks(), Training(arguments.step_ms / 1000)
    rows = {}
    for way in (Nothing, AllReduce, Board):
        quiet, saves, notes = ranks.joined(measure_steps(way, training, here, arguments.steps))
        row = rows[way.__name__] = {"quiet_median_us": statistics.median(quiet), "quiet_p95_us": p95(quiet)}
        if saves:
            row |= {"save_median_us": statistics.median(saves), "save_p95_us": p95(saves)}
        if notes:
            row |= {"note_median_us": statistics.median(notes), "note_p95_us": p95(notes)}
        if way is not Nothing:
            row |= measure_notices(way, training, here, arguments.notices)
    return rows


def add_arguments(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--steps", type=int, default=400, help="steps per way")
    parser.add_argument("--step-ms", type=float, default=10.0, help="length of a step")
    parser.add_argument("--notices", type=int, default=10, help="notices per way")


def run(arguments):
    settings = {name: getattr(arguments, name) for name in ("ranks", "steps", "step_ms", "notices")}
    report = Report("agree", settings, COLUMNS)
    for world_size in arguments.ranks:
        measured = ranks.run(measure, world_size, arguments, group=True)
        for way, name in WAYS.items():
            report.rows.append({"way": f"{name}, {world_size} ranks", "ranks": world_size, **measured[way]})
        print(f"{world_size} ranks: done", flush=True)
    return report
