"""Check 2: the time that shared host memory takes until a device can copy into it, and the speed of these copies."""

from __future__ import annotations

import threading
import time

import torch

from ..host_memory import HostMemory, copy_speed, pinned_speed
from ..training import memory_available

PIECE_BYTES = 256 * 2**20


def run(settings, report):
    """Measure each size, from the smallest to the largest."""
    if settings.has_cuda:
        pinned = pinned_speed()
        report.figure("pinned memory of torch, copies", f"{pinned / 1e9:.1f} GB/s", ">= 45 GB/s", pinned >= 45e9)
        gap = _longest_gap(lambda: time.sleep(0.5))
        report.figure("launch gap, quiet", f"{gap * 1e3:.1f} ms")
    for gib in settings.pick((1, 8, 32), (1,), (1 / 64,)):
        num_bytes = int(gib * 2**30)
        if memory_available(settings) < 1.2 * num_bytes:
            report.skip(f"memfd of {gib:g} GiB", f"only {memory_available(settings) / 2**30:.1f} GiB are available")
            continue
        _measure(settings, report, gib, num_bytes)
    _compare_ways(settings, report, settings.pick(8, 1, 1 / 64))


def _measure(settings, report, gib, num_bytes):
    memory = HostMemory(num_bytes)
    try:
        name = f"memfd of {gib:g} GiB"
        seconds = memory.fault_in_by_memset() / gib
        report.figure(
            f"{name}: fault-in by memset", f"{seconds:.3f} s/GiB", "0.2-0.6", seconds <= 0.6, s_per_gib=seconds
        )
        if not settings.has_cuda:
            report.skip(f"{name}: registration and copies", "needs a GPU")
            return
        taken = []

        def register():
            started = time.perf_counter()
            taken.append((memory.register(), time.perf_counter() - started))

        gap = _longest_gap(register)
        error, seconds = taken[0]
        if error:
            report.fact(f"{name}: registration", f"CUDA error {error}", "no error", False)
            return
        per_gib = seconds / gib
        report.figure(f"{name}: registration", f"{per_gib:.3f} s/GiB", "0.05-0.2", per_gib <= 0.2, s_per_gib=per_gib)
        report.figure(f"{name}: launch gap meanwhile", f"{gap * 1e3:.1f} ms", "< 50 ms", gap < 0.05, gap_s=gap)
        source = torch.ones(min(num_bytes, 4 * 2**30), dtype=torch.uint8, device="cuda")
        speed = copy_speed(source, memory.bytes[-source.nbytes :])
        report.figure(f"{name}: copies", f"{speed / 1e9:.1f} GB/s", ">= 45 GB/s", speed >= 45e9, bytes_per_s=speed)
        started = time.perf_counter()
        gap = _longest_gap(memory.unregister)
        seconds = time.perf_counter() - started
        report.figure(f"{name}: unregistering", f"{seconds:.2f} s, launch gap {gap * 1e3:.1f} ms")
    finally:
        memory.close()


def _compare_ways(settings, report, gib):
    """Measure other ways to fault in and to register, for the same size."""
    num_bytes = int(gib * 2**30)
    for num_threads in (1, 4):
        memory = HostMemory(num_bytes)
        name = f"memfd of {gib:g} GiB: fault-in by populate, {num_threads} threads"
        try:
            seconds = memory.fault_in_by_populate(num_threads) / gib
            report.figure(name, f"{seconds:.3f} s/GiB", s_per_gib=seconds)
            if settings.has_cuda and num_threads == 4:
                _register_in_pieces(report, memory, gib)
        except OSError as error:
            report.skip(name, str(error))
        finally:
            memory.close()


def _register_in_pieces(report, memory, gib):
    starts = range(0, memory.num_bytes, PIECE_BYTES)
    errors = []

    def register():
        errors.extend(memory.register(start, min(PIECE_BYTES, memory.num_bytes - start)) for start in starts)

    started = time.perf_counter()
    gap = _longest_gap(register)
    seconds = (time.perf_counter() - started) / gib
    figure = f"{seconds:.3f} s/GiB, launch gap {gap * 1e3:.1f} ms, {len(errors) - errors.count(0)} errors"
    report.figure(f"memfd of {gib:g} GiB: registration in pieces of 256 MiB", figure, "launch gap < 50 ms", gap < 0.05)
    for start in starts:
        memory.unregister(start)


def _longest_gap(action):
    """Return the longest time between two launches of a second thread while *action* runs."""
    numbers = torch.ones(256, device="cuda")
    begun, done = threading.Event(), threading.Event()
    gaps = []

    def launch():
        longest, before = 0.0, None
        while not done.is_set():
            numbers.add_(1)
            now = time.perf_counter()
            longest = max(longest, now - before) if before is not None else 0.0
            before = now
            if not begun.is_set() and longest:
                longest = 0.0
                begun.set()
        gaps.append(longest)

    thread = threading.Thread(target=launch)
    thread.start()
    begun.wait()
    try:
        action()
    finally:
        done.set()
        thread.join()
    torch.cuda.synchronize()
    return gaps[0]
