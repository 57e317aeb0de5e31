"""A training loop without a host, whose later steps are trained again after it has ended without a notice."""

from __future__ import annotations

import os
import random
import signal
from contextlib import ExitStack

import numpy as np
import torch
from hearing import Heard, pusher_pid, until, until_gone
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed
from spot_plugins.format.commit import committed_steps
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart
from spot_plugins.store import LocalStore

SAVED = 5
CHANGED = 7
"""The step in which a changed program does something else, once."""


class DiedError(Exception):
    """Ends a training without a notice."""


class Training:
    """A training of one rank, that draws from all streams and has a scheduler."""

    def __init__(self, change=None):
        """*change* names the kind of what the program does in another way than before."""
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
        self.change = change
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.9)
        self.data = {"batches": 0}

    def state_dict(self):
        return self.data

    def load_state_dict(self, state):
        self.data = state

    def train_on(self, step):
        """Train one step, and return the number of batches in it."""
        change = self.change if step == CHANGED else None
        x = torch.rand(4, 2) + random.random() + np.random.rand()
        self.optimizer.zero_grad()
        self.model(x).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.data["batches"] += 1
        match change:
            case "data":
                self.data["batches"] += 1
            case "rates":
                self.optimizer.param_groups[0]["lr"] *= 2
            case "torch":
                torch.rand(1)
            case "python":
                random.random()
            case "numpy":
                np.random.rand()
        return 2 if change == "accumulation" else 1


def run(folder, *, change=None, die_at=None, num_steps=12, die=None, ranks=None, local="local"):
    """
    Train to the end, or die after step *die_at*. Return the session's events, and what is in memory at the end.

    Step 5 is stored before step 6 begins. The next save would be that of the end. The pusher process has ended before
    this returns, so the records of all steps are on the disk.
    """
    heard = Heard()
    training = Training(change)
    url = str(folder / "run")
    config = SpotConfig(url=url, every_steps=10**6, local_dir=local and str(folder / local))
    with ExitStack() as end, SpotSession(config, ranks=ranks, on_event=heard) as session:
        session.register_model(training.model, [training.optimizer], [training.scheduler])
        session.register("data", training)
        session.register("rng", RngPart())
        step = session.resume() or 0
        end.callback(until_gone, pusher_pid(session))
        while step < num_steps:
            step += 1
            num_batches = training.train_on(step)
            session.after_step(step, position=(0, training.data["batches"]), num_batches=num_batches)
            if step == SAVED:
                session.save(step)
                heard.wait(Committed, step=step)
                until(lambda: committed_steps(LocalStore(url)), "all ranks have stored it")
            if step == die_at:
                (die or _die)()
        session.finish(step)
    return heard, training


def _die():
    raise DiedError


def main(folder, die_at):
    """Run in a process of its own, and kill it after *die_at*."""
    run(folder, die_at=die_at, die=lambda: os.kill(os.getpid(), signal.SIGKILL))
