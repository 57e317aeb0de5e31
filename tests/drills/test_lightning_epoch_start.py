"""Attributes that a program sets up at the beginning of an epoch, when a later epoch continues midway."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LambdaCallback,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from lightning_lives import BATCH, Interrupt, Lives, Net, data
from torch import nn
from torch.utils.data import DataLoader

pytestmark = pytest.mark.sampled

NOTICE = [(13, "notice")]
KILL = [(13, "kill")]


class Losses(Net):
    """Sets up a list for the losses of the epoch, and trains on its mean afterwards."""

    def on_train_epoch_start(self):
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.compute(batch)
        self.losses.append(loss)
        return loss

    def on_train_epoch_end(self):
        mean = torch.stack(self.losses).mean()
        self.recorded["mean", self.current_epoch] = float(mean.detach())
        self.layer.bias.data.sub_(mean.detach() * 0.01)


class Weighted(Net):
    """Has a weight by epoch, and the weights of the model at the beginning of the epoch."""

    def on_train_epoch_start(self):
        self.weight = 1.0 / (1 + self.current_epoch)
        self.anchor = [p.detach().clone() for p in self.parameters()]

    def training_step(self, batch, batch_idx):
        drift = sum((p - a).square().sum() for p, a in zip(self.parameters(), self.anchor, strict=True))
        return self.compute(batch) * self.weight + drift


class InPlace(Net):
    """Changes saved state at the beginning of an epoch: weights, learning rate, random numbers."""

    def on_train_start(self):
        torch.rand(3)

    def on_train_epoch_start(self):
        self.layer.weight.data.mul_(0.5)
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.9
        self.log("drawn", torch.rand(()))
        random.random()

    def on_train_epoch_end(self):
        self.recorded["drawn", self.current_epoch] = float(self.trainer.callback_metrics["drawn"])


class Batches:
    """A batch sampler that is told the epoch by the program."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 8

    def __iter__(self):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(self.epoch))
        yield from order.view(8, BATCH).tolist()


class TellsBatches(Net):
    def train_dataloader(self):
        return DataLoader(data(), batch_sampler=Batches(), num_workers=0)

    def on_train_epoch_start(self):
        self.trainer.train_dataloader.batch_sampler.set_epoch(self.current_epoch)


class Level(Enum):
    LOW = 1
    HIGH = 2


@dataclass
class Meter:
    total: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class Stage:
    factor: float


LOW, HIGH = Stage(0.5), Stage(2.0)


class Average:
    """Something with a state of its own."""

    def __init__(self):
        self._sum = torch.zeros(2)

    def state_dict(self):
        return {"sum": self._sum}

    def load_state_dict(self, state):
        self._sum = state["sum"]

    def add(self, value):
        self._sum += value
        return self._sum.sum()


class Attributes(Net):
    """Keeps all kinds of values, each of which the loss depends on."""

    def __init__(self, trace):
        super().__init__(trace)
        self.meter = Meter()
        self.level = Level.LOW
        self.stage = LOW
        self.average = Average()
        self.generator = torch.Generator().manual_seed(5)
        self.numpy = np.random.default_rng(5)
        self.python = random.Random(5)
        self.queue = torch.zeros(4)
        self.counts = np.zeros(3)
        self.seen = {"steps": 0, "pairs": (0, {1, 2})}

    def training_step(self, batch, batch_idx):
        loss = self.compute(batch)
        self.meter.total += loss.item()
        self.meter.count += 1
        self.seen["steps"] += 1
        if self.meter.count > 6:
            self.level, self.stage = Level.HIGH, HIGH
            self.drop.p = 0.5
        self.queue = torch.cat([self.queue[1:], loss.detach().view(1)])
        self.counts += 1
        drawn = torch.rand((), generator=self.generator) + self.numpy.random() + self.python.random()
        scale = self.level.value * self.stage.factor + self.queue.mean() + self.counts.sum() + self.seen["steps"]
        loss = loss * (drawn + scale + self.meter.total + self.average.add(0.5))
        self.record(batch[2], loss)
        return loss


@pytest.mark.filterwarnings("ignore:fetching .* batches again")
@pytest.mark.parametrize("interrupts", [NOTICE, KILL, [(7, "notice"), (12, "kill"), (20, "notice")]])
@pytest.mark.parametrize("net", [Losses, Weighted, InPlace, TellsBatches, Attributes])
def test_an_epoch_that_continues_is_the_same_as_one_that_was_never_interrupted(net, interrupts, tmp_path):
    """With everything that the module set up in on_train_epoch_start, and kept in attributes since."""
    Lives(tmp_path, lambda trace: (net(trace), []), every_steps=3).compare(*interrupts)
    assert (Stage(0.5), Stage(2.0)) == (LOW, HIGH), "a constant of the program must not be changed"


class Keeps(Callback):
    """A callback that does what Losses does."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.layer.bias.data.sub_(torch.stack(self.losses).mean() * 0.01)


class Backbone(Net):
    def __init__(self, trace):
        super().__init__(trace)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return super().forward(self.backbone(x))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def schedule():
    epochs = []
    return LambdaCallback(on_train_epoch_start=lambda trainer, module: epochs.append(trainer.current_epoch))


CALLBACKS = {
    "own": Keeps,
    "averaged weights (SWA)": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "averaged weights (SWA), later": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2),
    "accumulation": lambda: GradientAccumulationScheduler({0: 1, 1: 2}),
    "unfreezing": lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1),
    "timer": lambda: Timer(duration="01:00:00:00"),
    "progress bar": TQDMProgressBar,
    "function": schedule,
}


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")  # by Lightning, from epoch 2 on
@pytest.mark.parametrize("at", [13, 17])
@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_set_up_a_continued_epoch_too(name, at, tmp_path):
    """Those of the program, and those of Lightning that begin an epoch with something of their own."""
    make = lambda trace: (Backbone(trace), [CALLBACKS[name]()])  # noqa: E731
    Lives(tmp_path, make, every_steps=3, max_epochs=4, enable_progress_bar=True).compare((at, "notice"))


class Other:
    """Cannot be saved: it holds a function."""

    def __init__(self):
        self.call = lambda: 1


class Lost(Net):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            self.other = Other()
            self.bank = torch.zeros(2**24 + 1)
        return self.compute(batch)


@pytest.mark.filterwarnings("ignore:Lost.bank has changed")
def test_what_cannot_be_restored_is_named(tmp_path):
    """At the save if it is too large, and after the resume if it is missing."""
    lives = Lives(tmp_path, lambda trace: (Lost(trace), []), every_steps=11)
    with pytest.warns(UserWarning, match=r"Lost\.bank has changed in training and is larger than 64 MiB.*register_buf"):
        lives.run("run", Interrupt(13, "notice"))
    with pytest.warns(UserWarning, match=r"Lost\.other had changed in the middle of the epoch.*Set it up in on_train"):
        lives.run("run")


def test_a_setting_of_the_new_process_stays(tmp_path):
    """An attribute that training does not change is not saved."""

    class Configured(Net):
        def on_train_start(self):
            self.folder = folders.pop()

        def training_step(self, batch, batch_idx):
            return self.compute(batch) * self.factor

    def make(trace, factor):
        module = Configured(trace)
        module.factor = factor
        return module, []

    folders = ["new", "old"]
    Lives(tmp_path, lambda trace: make(trace, 1.0)).run("run", Interrupt(13, "notice"))
    _, module, _ = Lives(tmp_path, lambda trace: make(trace, 2.0)).run("run")

    assert (module.folder, module.factor) == ("new", 2.0)
