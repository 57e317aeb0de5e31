"""Training loops with Accelerate that live, are interrupted and live again, all within the process of a test."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from contract.hosts.lives import differences
from torch import nn
from torch.utils.data import Dataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.errors import Preempted

DEADLINE_S = 300


class KilledError(Exception):
    """Ends a life at once, as SIGKILL does."""


class Numbers(Dataset):
    """Sample i is (i, a vector that depends on i)."""

    def __init__(self, length, first=0):
        self.length, self.first = length, first

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        number = self.first + index
        return number, torch.sin(torch.arange(1.0, 5.0) * (number + 1))


class Life:
    """
    One life of a program: ``program(life)`` trains and calls :meth:`point` for each batch, before its step is reported.

    Args:
        url: URL of the run.
        program: The training.
        end: None, or how this life ends: ("kill", "term" or "ctrl-c", number of the point).

    The program may set ``final``, state to compare at the end.
    """

    def __init__(self, url, program, end=None, every_steps=1, **settings):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True, **settings)
        self.url, self.program, self.end, self.every_steps = url, program, end, every_steps
        self.trace = {}
        self.num_points = 0
        self.models = []
        self.final = None
        torch.manual_seed(1)

    def hook(self):
        self.spot = SpotHook(self.accelerator, self.url, every_steps=self.every_steps, grace_seconds=60)
        return self.spot

    def net(self):
        self.models.append(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 1)))
        return self.models[-1]

    def point(self, *record, key=None):
        """Record what this batch trains on, and end this life here if it is time."""
        key = (self.spot.progress.step, self.accelerator.step) if key is None else key
        self.trace[key] = record
        self.num_points += 1
        if self.end is not None and self.num_points == self.end[1]:
            if self.end[0] == "kill":
                self.until(lambda: not self.spot._session._opened.pusher.ledger.is_busy)
                raise KilledError
            if self.end[0] == "ctrl-c":
                signal.raise_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            self.until(lambda: self.spot._session.notice is not None)

    def stored(self):
        """Wait until the last save is stored, so that the next one is not put off."""
        self.until(lambda: not self.spot._session._opened.pusher.ledger.is_busy)

    def until(self, condition):
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def run(self):
        with suppress(KilledError, Preempted, KeyboardInterrupt):
            self.program(self)
        weights = [parameter.tolist() for model in self.models for parameter in model.parameters()]
        return self.trace, weights


def live(url, program, end=None, **settings):
    """Return what one life of *program* has trained on, by step, and its last weights."""
    return Life(url, program, end, **settings).run()


def assert_exact(program, tmp_path, *ends, again=None, **settings):
    """
    Interrupt *program* as each of *ends* says, let it end, and compare it with one that was left alone.

    *again* are the settings of the lives after the first, if they are other ones.
    """
    alone = Life(f"file://{tmp_path}/control", program, **settings)
    control = alone.run()
    assert control[0]
    trace = {}
    for end in (*ends, None):
        life = Life(f"file://{tmp_path}/run", program, end, **settings)
        found, weights = life.run()
        if end is not None:
            assert life.num_points >= end[1], "it was not interrupted"
        trace |= found
        settings = {**settings, **(again or {})}
    assert life.num_points < alone.num_points, "it must have continued, and not begun anew"
    assert trace == control[0]
    assert weights == control[1]
    assert differences(life.final, alone.final) == []
