"""The windows of accumulation, where the program has changed them in the middle of an epoch."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from itertools import accumulate

import pytest
import torch
from hearing import until
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from spot_plugins import Preempted
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint

NUM_BATCHES = 12


class Sums(LightningModule):
    """The gradient of a batch is its number, so each step changes the weight by the mean of its window."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.weights = {}

    def training_step(self, batch):
        return (self.weight * batch).sum()

    def on_train_batch_end(self, *_):
        self.weights[self.global_step] = self.weight.item()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(folder, *, window, max_steps=-1):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    spot = SpotCheckpoint(f"file://{folder}/run", every_steps=100)
    limits = {"max_epochs": 2, "max_steps": max_steps, "accumulate_grad_batches": window}
    module = Sums()
    trainer = Trainer(accelerator="cpu", callbacks=[spot], **limits, **quiet)
    trainer.fit(module, elastic_loader(range(1, NUM_BATCHES + 1), batch_size=1, shuffle=False))
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_window_begins_where_the_training_continues(tmp_path):
    """
    One window of 3 batches, then windows of 2 from the fourth batch on. In the next epoch they begin with the first.
    """
    fit(tmp_path, window=3, max_steps=1)
    module = fit(tmp_path, window=2)

    windows = [(1, 2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12,)]
    windows += [(number, number + 1) for number in range(1, NUM_BATCHES, 2)]
    changes = [-sum(window) / 2 for window in windows]  # Lightning divides by the size of a whole window
    changes[0] = -2
    assert module.weights == pytest.approx(dict(enumerate(accumulate(changes, initial=0))))
    assert module.lr_schedulers().last_epoch == len(windows)


class Replicas(SingleDeviceStrategy):
    """One of several processes that read different samples. Nothing but their number is real."""

    def __init__(self, number):
        super().__init__("cpu")
        self.number = number

    @property
    def distributed_sampler_kwargs(self):
        return {"num_replicas": self.number, "rank": 0}


class Linear(Sums):
    """The learning rate falls to 0 in as many steps as the trainer expects."""

    def __init__(self, *, is_eager, left_in):
        super().__init__()
        self.is_eager = is_eager
        self.left_in = left_in
        self.rates = {}

    def rate(self, step):
        return 1 - step / self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, *_):
        self.rates[self.global_step + 1] = self.optimizers().param_groups[0]["lr"]
        if self.global_step + 1 == self.left_in:
            signal.raise_signal(signal.SIGTERM)
            (spot,) = (each for each in self.trainer.callbacks if isinstance(each, SpotCheckpoint))
            until(lambda: spot._fit.session.notice is not None, "the notice is known")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if self.is_eager:
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit_on(folder, number, *, left_in=None, is_eager=False, **settings):
    """Train two epochs of 12 samples on *number* replicas, with a notice in the step *left_in*. Return the rates."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    spot = SpotCheckpoint(f"file://{folder}/run", every_steps=100, **settings)
    module = Linear(is_eager=is_eager, left_in=left_in)
    trainer = Trainer(strategy=Replicas(number), callbacks=[spot], max_epochs=2, accelerator="cpu", **quiet)
    with nullcontext() if left_in is None else pytest.raises(Preempted):
        trainer.fit(module, elastic_loader(range(1, NUM_BATCHES + 1), batch_size=1, shuffle=False))
    return module.rates


TOTAL_ON_2 = NUM_BATCHES // 2 * 2
FALLING = {step: 1 - (step - 1) / TOTAL_ON_2 for step in range(1, TOTAL_ON_2 + 1)}
MADE_FROM = "A schedule made from trainer.estimated_stepping_batches of this process ends elsewhere"


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_by_the_steps_of_the_trainer_ends_with_the_training_on_another_number_of_ranks(tmp_path, caplog):
    """It asks in each step, and the samples of a step are kept, so that the steps are as many as before."""
    first = fit_on(tmp_path, 2, left_in=3)
    second = fit_on(tmp_path, 1)

    assert first | second == pytest.approx(FALLING)
    assert "learning rate" not in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_by_the_steps_that_the_trainer_expected_at_first_is_named(tmp_path, caplog):
    """It was made before anything was restored, for as many steps as there are without accumulation."""
    step = len(fit_on(tmp_path, 2, left_in=3, is_eager=True))
    fit_on(tmp_path, 1, is_eager=True)

    assert "total=24 is used from now on, not the checkpoint's 12" in caplog.text
    rates = f"a learning rate of {1 - step / 24:.6g} where the run has come to, and the run had {1 - step / 12:.6g}"
    assert rates in caplog.text
    assert MADE_FROM not in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "settings"), [(1, {"elastic_batch": "scale"}), (3, {})], ids=["scale", "odd"])
def test_a_schedule_whose_steps_are_not_those_of_the_optimizer_is_named(number, settings, tmp_path, caplog):
    fit_on(tmp_path, 2, left_in=3, **settings)
    assert MADE_FROM not in caplog.text
    fit_on(tmp_path, number, **settings)

    step = (
        f"a step of a learning rate schedule is 2 batches, as in the first process, and an optimizer step is {number}"
    )
    assert f"{step}. {MADE_FROM}" in caplog.text
