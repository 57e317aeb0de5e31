"""Check 10: a large state. The stall of a save, the speed of its copy, the steps beside it, and a notice meanwhile."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
import time

import torch

from spot_plugins.errors import Preempted
from spot_plugins.events import Committed, LastSecondsPlanned, SaveAbandoned, Staged

from ..host_memory import pinned_speed
from ..training import Ahead, Events, memory_available, outcome, session_of, synchronize, wait_for_buffers

NUM_STEPS = 8


def run(settings, report, num_gb):
    """Measure a state of *num_gb* GB, if the machine has room for it."""
    if settings.scale != "full" and num_gb > 10:
        report.skip(f"{num_gb} GB", "the sizes of this run are small")
        return
    num_gb = settings.pick(num_gb, 1, 0.005)
    size = f"{num_gb:g} GB"
    if lack := _lack(settings, num_gb):
        report.skip(size, lack)
        return
    _Measurement(settings, report, size, num_gb).run()


def _lack(settings, num_gb):
    """Return what the machine has too little of: memory for two buffers, or room for two steps or the rest of one."""
    available = memory_available(settings) / 1e9
    free = shutil.disk_usage(settings.folder).free / 1e9
    if available < 2.2 * num_gb + 4:
        return f"two buffers need {2.2 * num_gb + 4:.0f} GB of memory, {available:.0f} are available"
    needed = (3 if num_gb <= 10 else 1) * num_gb
    return f"{needed:.0f} GB of disk are needed, {free:.0f} are free" if free < needed else None


class _Measurement:
    def __init__(self, settings, report, size, num_gb):
        self.settings = settings
        self.report = report
        self.size = size
        self.commits = num_gb <= 10
        """True if a save is stored before the next one begins. A larger state would fill the disk."""
        self.training = Ahead(num_gb, settings.device, tokens=settings.pick(8192 if num_gb <= 10 else 4096, 8192, 16))
        self.gb = self.training.num_bytes() / 1e9
        self.events = Events()
        model, optimizers = self.training.model, [self.training.optimizer]
        folder = f"{settings.folder}/run"
        self.grace_s = 30.0 if self.commits else 120.0
        self.session = session_of(folder, model, optimizers, [self.events, self._on_event], grace_seconds=self.grace_s)
        self.step = 1
        self.notice_at = None

    def run(self):
        self.session.handle_signals()
        self.session.resume()
        self.session.after_step(self.step)
        started = time.monotonic()
        wait_for_buffers(self.session, 60)
        self._figure("buffer made off the training thread", f"{time.monotonic() - started:.1f} s")
        if self.commits:
            self._after_a_quiet_device()
        self._beside_steps()
        self._notice()

    def _after_a_quiet_device(self):
        """Save while the device has nothing to do, so that the time of the copy is that of the copy alone."""
        for _ in range(3):
            self._train()
        synchronize(self.settings.device)
        stall_s, staged = self._save()
        speed = staged.num_bytes / staged.copy_s
        figure, meets = f"{staged.copy_s:.3f} s, {speed / 1e9:.1f} GB/s", True
        if self.settings.has_cuda:
            pinned = pinned_speed()
            meets = speed >= 0.85 * pinned
            figure += f", {speed / pinned:.0%} of pinned memory ({pinned / 1e9:.1f} GB/s)"
        self._figure("stall of the first save, quiet device", f"{stall_s * 1e3:.1f} ms, {self.gb:.1f} GB")
        self._figure("copy, quiet device", figure, ">= 85 % of pinned", meets, copy_s=staged.copy_s)
        at, committed = self.events.wait(Committed, SaveAbandoned, step=self.step, within_s=60)
        staged_at = self.events.of(Staged, step=self.step)[0][0]
        kind = type(committed).__name__
        self._figure("staged to stored on this disk", f"{kind} after {at - staged_at:.1f} s", push_s=at - staged_at)

    def _beside_steps(self):
        """Save while training continues and the host is ahead of the device."""
        marks = [self._mark()]
        for number in range(2 * NUM_STEPS):
            if number == NUM_STEPS:
                started = time.perf_counter()
                self.session.save(self.step)
                stall_s = time.perf_counter() - started
                saved = self.step
            self._train()
            marks.append(self._mark())
        synchronize(self.settings.device)
        steps = [_between(before, after) for before, after in itertools.pairwise(marks)]
        quiet, beside = steps[2:NUM_STEPS], steps[NUM_STEPS:]
        pace = statistics.median(quiet)
        staged = outcome(self.events, saved, 60)
        limit_s = 0.005 if self.commits else 0.15
        self._figure("stall of a save while training", f"{stall_s * 1e3:.1f} ms", f"< {limit_s * 1e3:.0f} ms",
                     stall_s < limit_s, stall_s=stall_s)  # fmt: skip
        if not isinstance(staged, Staged):
            self.report.fact(f"{self.size}: save while training", f"abandoned: {staged.reason}", "staged", False)
            return
        self._figure("copy while training, from the call", f"{staged.copy_s:.2f} s, behind what is queued",
                     "0.8-1.2 s for 40 GB", copy_s=staged.copy_s)  # fmt: skip
        lost = sum(beside) - len(beside) * pace
        slowest = max(beside[:3])
        figure = f"quiet {pace * 1e3:.0f} ms, first three after the save {_ms(beside[:3])}, lost in all {lost:.3f} s"
        self._figure("steps while it copies", figure, "<= +10 %", slowest <= 1.1 * pace, pace_s=pace, lost_s=lost)

    def _notice(self):
        """Receive a SIGTERM while the save before is being pushed, and train on as long as the session wants it."""
        in_flight = not self.events.of(Committed, step=self.events.of(Staged)[-1][1].step)
        name = f"notice {'during' if in_flight else 'after'} a push"
        self.notice_at = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            while time.monotonic() < self.notice_at + 45:
                self._train()
                self.session.after_step(self.step)
                synchronize(self.settings.device)
        except Preempted as left:
            figure = f"left after {time.monotonic() - self.notice_at:.1f} s with step {left.step}, now {self.step}"
            self._figure(name, f"{figure}, {self._choices()}", "figure only", is_durable=left.step == self.step)
            return
        self.report.fact(f"{self.size}: {name}", f"not left within 45 s, {self._choices()}", "Preempted", False)

    def _on_event(self, event):
        """Report the copy because of the notice at once: a check may be killed while it waits for the store."""
        if self.notice_at is None or not isinstance(event, Staged):
            return
        figure = f"{time.monotonic() - self.notice_at:.2f} s ({event.trigger}), of these {event.copy_s:.2f} s the save"
        self._figure("notice to staged", f"{figure}, {self._choices()}", "figure only")
        if not self.commits:
            os._exit(0)  # the disk has no room for this step

    def _choices(self):
        return [event.choice for _, event in self.events.of(LastSecondsPlanned)]

    def _save(self):
        started = time.perf_counter()
        self.session.save(self.step)
        stall_s = time.perf_counter() - started
        staged = outcome(self.events, self.step, 60)
        if not isinstance(staged, Staged):
            raise RuntimeError(f"step {self.step} was abandoned: {staged.reason}")
        return stall_s, staged

    def _train(self):
        self.training.step()
        self.step += 1

    def _mark(self):
        if not self.settings.has_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _figure(self, name, *arguments, **values):
        self.report.figure(f"{self.size}: {name}", *arguments, **values)


def _between(before, after):
    return after - before if isinstance(before, float) else before.elapsed_time(after) / 1e3


def _ms(steps):
    return " ".join(f"{step * 1e3:.0f}" for step in steps)
