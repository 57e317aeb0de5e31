"""A training whose steps run ahead of the device, its session, and the events of that session."""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from torch import nn

from benchmarks.state import BYTES_PER_PARAMETER, Block, Training
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, SaveAbandoned, Staged
from spot_plugins.session import SpotSession

NEVER = 10**9  # steps, so that only explicit saves are made


class Ahead(Training):
    """
    Blocks of a transformer and AdamW, with a state of about *num_gb* GB in few large tensors.

    A step waits for no device.
    """

    def __init__(self, num_gb, device, tokens=64, width=None, seed=0):
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        width = width or (4096 if num_gb >= 1 else 1024 if num_gb >= 0.1 else 64)
        num_blocks = max(1, round(num_gb * 1e9 / BYTES_PER_PARAMETER / (8 * width * width)))
        self.device = torch.device(device)
        with self.device:
            self.model = self.module = nn.Sequential(*(Block(width) for _ in range(num_blocks)))
            self.batch = torch.randn(tokens, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.num_steps = 0
        self.step()

    def step(self, guard=nullcontext):
        self.optimizer.zero_grad()
        self.module(self.batch).square().mean().backward()
        with guard():
            self.optimizer.step()
        self.num_steps += 1


class Events:
    """Remembers the events of a session, with the times at which they came."""

    def __init__(self):
        self.all = []
        self._changed = threading.Condition()

    def __call__(self, event):
        with self._changed:
            self.all.append((time.monotonic(), event))
            self._changed.notify_all()

    def of(self, *kinds, **fields):
        """Return the time and the event of each of these *kinds* with these *fields*."""
        return [
            (at, event)
            for at, event in list(self.all)
            if isinstance(event, kinds) and all(getattr(event, name) == value for name, value in fields.items())
        ]

    def wait(self, *kinds, within_s, **fields):
        """Wait for the first such event, and return its time and itself. Raise TimeoutError if none comes."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.of(*kinds, **fields), within_s):
                names = " or ".join(kind.__name__ for kind in kinds)
                raise TimeoutError(f"no {names} {fields} within {within_s} s")
        return self.of(*kinds, **fields)[0]


def session_of(folder, model, optimizers, events=(), **settings):
    """Return a session that saves into *folder* when it is told to."""
    settings = {"every_steps": NEVER, "keep_last": 1, "notice_sources": (), **settings}
    session = SpotSession(SpotConfig(url=f"file://{folder}", **settings), on_event=events)
    session.register_model(model, optimizers)
    return session


def wait_for_buffers(session, within_s):
    """Wait until the copying thread has made the first buffers."""
    session._opened.saver.wait_copied(time.monotonic() + within_s)


def outcome(events, step, within_s):
    """Wait until *step* is staged or abandoned. Return the event."""
    return events.wait(Staged, SaveAbandoned, step=step, within_s=within_s)[1]


def wait_stored(events, step, within_s):
    """Wait until *step* is committed, so that a session after this one resumes from it."""
    event = events.wait(Committed, SaveAbandoned, step=step, within_s=within_s)[1]
    if not isinstance(event, Committed):
        raise RuntimeError(f"step {step} was abandoned: {event.reason}")


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def sleep_on_device(seconds, device):
    """Queue a kernel that takes about *seconds*, at 2 GHz."""
    if device == "cuda":
        torch.cuda._sleep(int(seconds * 2e9))


def memory_available(settings):
    """Return the bytes of host memory that may be taken."""
    memory = psutil.virtual_memory()
    total = settings.memory_gib * 2**30 if settings.memory_gib else memory.total
    limit = cgroup_limit()
    if limit.isdigit():
        total = min(total, int(limit))
    return total - (memory.total - memory.available)


def cgroup_limit():
    """Return the text of the cgroup's limit on memory."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if os.path.exists(path):
            return Path(path).read_text().strip()
    return "unknown"
