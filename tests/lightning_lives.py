"""Lightning trainings in this process, interrupted before a chosen batch and started again with the same program."""

from __future__ import annotations

import os
import signal
import threading
from weakref import WeakKeyDictionary

import pytest
import torch
from contract.hosts.lives import differences
from hearing import until
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import TensorDataset

from spot_plugins.data import elastic_loader
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed
from spot_plugins.lightning import SpotCheckpoint

NUM_SAMPLES = 40
BATCH = 5


class Killed(Exception):  # noqa: N818 - not an error of the program
    """The machine is gone: nothing is saved on the way out."""


TRACES = WeakKeyDictionary()  # by module, because attributes of a module are restored


class Net(LightningModule):
    """Records what each batch saw, in a list outside of the module."""

    def __init__(self, trace):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.drop = nn.Dropout(0.25)
        TRACES[self] = trace

    @property
    def recorded(self):
        return TRACES[self]

    def forward(self, x):
        return self.layer(self.drop(x)).squeeze(1)

    def compute(self, batch):
        x, y, number = batch
        loss = (self(x) - y).square().mean()
        self.record(number, loss)
        return loss

    def record(self, number, *values):
        key = (self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx)
        self.recorded[key] = [number.tolist(), *(float(value.detach()) for value in values)]

    def training_step(self, batch, batch_idx):
        return self.compute(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return elastic_loader(data(), batch_size=BATCH, seed=3)


def data(num_samples=NUM_SAMPLES):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_samples, 4, generator=generator)
    return TensorDataset(x, x.sum(1), torch.arange(num_samples))


class Interrupt(Callback):
    """Ends the training before batch *at*, counted from 1 over all epochs."""

    def __init__(self, at, how):
        self.at, self.how = at, how
        self.committed = threading.Event()

    def on_event(self, event):
        if isinstance(event, Committed):
            self.committed.set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.at:
            if self.how == "kill":
                assert self.committed.wait(300)
                raise Killed
            os.kill(os.getpid(), signal.SIGINT if self.how == "Ctrl-C" else signal.SIGTERM)
            if self.how == "Ctrl-C":  # it is passed on a moment later, and these batches take less time than that
                until(lambda: False, "KeyboardInterrupt is raised")
            spots = [each for each in trainer.callbacks if isinstance(each, SpotCheckpoint)]
            if self.how == "notice" and spots:  # these batches take less time than a notice takes to be known
                until(lambda: spots[0]._fit.session.notice is not None, "the notice is known")


def make_trainer(folder, *callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **(quiet | {"max_epochs": 3} | settings)
    )


ENDS = {"notice": Preempted, "kill": Killed, "Ctrl-C": SystemExit}
"""The exception that leaves the training, for each way to interrupt it."""


class Lives:
    """
    One program, run without an interruption and with one.

    *make* returns a module and the callbacks of one process; it gets a dict to record in. *fit* trains the module
    with the trainer.
    """

    def __init__(self, folder, make, every_steps=100, fit=Trainer.fit, **settings):
        self._folder, self._make, self._every_steps, self._settings = folder, make, every_steps, settings
        self._fit = fit

    def run(self, url, interrupt=None, **settings):
        """Run the program until its end, or until it is interrupted. Return its trace, module and trainer."""
        trace = {}
        torch.manual_seed(1)
        module, callbacks = self._make(trace)
        others = [interrupt] if interrupt else []
        on_event = [interrupt.on_event] if interrupt else []
        spot = SpotCheckpoint(
            str(self._folder / url), every_steps=self._every_steps, grace_seconds=60, on_event=on_event
        )
        trainer = make_trainer(self._folder, *others, spot, *callbacks, **(self._settings | settings))
        if interrupt is None:
            self._fit(trainer, module)
        else:
            with pytest.raises(ENDS[interrupt.how]):
                self._fit(trainer, module)
        return trace, module, trainer

    def compare(self, *interrupts):
        """Assert that the interrupted training is the uninterrupted one. Return the modules of both, and the trace."""
        expected, module, control = self.run("control")
        seen = {}
        for at, how in interrupts:
            trace, _, _ = self.run("run", Interrupt(at, how))
            seen = merged(seen, trace)
        trace, resumed, trainer = self.run("run")
        seen = merged(seen, trace)
        assert trace, "it must have continued"
        assert len(trace) < len(expected), "it must have continued, and not begun anew"
        assert seen == expected
        for name, value in module.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        assert differences(state(trainer), state(control)) == []
        return module, resumed, expected


def state(trainer):
    """Return the state of the optimizers and schedulers of *trainer*."""
    return [
        [optimizer.state_dict() for optimizer in trainer.optimizers],
        [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
    ]


def merged(seen, trace):
    """Return both traces as one. What was trained twice must have been the same."""
    for key in seen.keys() & trace.keys():
        assert seen[key] == trace[key], key
    return seen | trace
