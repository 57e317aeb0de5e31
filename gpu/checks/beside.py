"""Check 14: what a step costs without a save, and the stall of other checkpointers for the same state."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from benchmarks import overhead as measured
from benchmarks import ways

from ..training import Ahead, memory_available

STAGES_ONCE = torch.__version__ < "2.13"  # before it, a DefaultStager cannot be used again
PEERS = {"spot_plugins": 2, "DCP async, DefaultStager": 1 if STAGES_ONCE else 2, "torch.save": 1}
"""The ways to save, and how often each saves. The last save counts, because the first one makes buffers."""


def overhead(settings, report):
    """Measure the fingerprints and the guard, each in a loop, and all of the session's call between steps."""
    arguments = SimpleNamespace(device=settings.device, steps=settings.pick(300, 100, 30), saves=settings.pick(4, 2, 2))
    functions = {
        "fingerprints, tight loop": measured._take_fingerprints,
        "guard, tight loop": measured._call_guard,
        "session, between steps": measured._in_plain_loop,
    }
    for name, function in functions.items():
        folder = Path(settings.folder, name.replace(" ", "-"))
        folder.mkdir()
        row = function(folder, arguments)
        figure = f"{row['added_us']:.1f} +- {row['interval_us'] or 0:.1f} us (step {row['step_us']:.0f} us)"
        report.figure(f"overhead: {name}", figure, "<= 20 us", row["added_us"] <= 20, **row)


def peers(settings, report):
    """Measure each way with the same training."""
    num_gb = settings.pick(10, 1, 0.005)
    for name, num_saves in PEERS.items():
        if reason := _why_not(settings, name, num_gb):
            report.skip(f"peer: {name}", reason)
            continue
        folder = Path(settings.folder, name.replace(" ", "-"))
        folder.mkdir()
        try:
            _measure(settings, report, name, num_gb, num_saves, folder)
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            report.fail(f"peer: {name}", error)
        shutil.rmtree(folder, ignore_errors=True)


def _why_not(settings, name, num_gb):
    if memory_available(settings) < 2.2e9 * num_gb:
        return f"{2.2 * num_gb:.0f} GB of memory are needed"
    if shutil.disk_usage(settings.folder).free < 2.2e9 * num_gb:
        return f"{2.2 * num_gb:.0f} GB of disk are needed"
    return ways.why_not(name, settings.device)


def _measure(settings, report, name, num_gb, num_saves, folder):
    kind = ways.find(name)
    if kind.needs_group and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if settings.has_cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{settings.folder}/group", rank=0, world_size=1)
    training = Ahead(num_gb, settings.device, tokens=settings.pick(8192, 8192, 16))
    way = kind(training, folder, keep_last=1) if name == "spot_plugins" else kind(training, folder)

    def step():
        started = time.perf_counter()
        training.step(way.guard)
        training.synchronize()
        way.after_step(training.num_steps)
        return time.perf_counter() - started

    step()
    quiet = statistics.median(step() for _ in range(4))
    for number in range(num_saves):
        training.synchronize()
        started = time.perf_counter()
        saved = way.save(training.num_steps)
        stall_s = time.perf_counter() - started
        steps = [step()]
        while not saved.done and time.perf_counter() < started + 60:
            steps.append(step())
        saved.wait(1)
        lost_s = stall_s + sum(steps) - len(steps) * quiet
        which = "" if num_saves == 1 else f", save {number + 1}"
        figure = f"stall {stall_s:.3f} s, lost {lost_s:.2f} s, done after {saved.at - started:.1f} s"
        report.figure(
            f"peer: {name}{which}",
            f"{figure} (step {quiet * 1e3:.0f} ms, {training.num_bytes() / 1e9:.1f} GB)",
            stall_s=stall_s,
            lost_s=lost_s,
            step_s=quiet,
        )
        way.forget(training.num_steps)
    way.close()
