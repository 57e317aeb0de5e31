"""The guard tells programs of Lightning and Accelerate about things that they change and do not save."""

from __future__ import annotations

import copy
import types
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint


def warned(run):
    """Return what the guard says while *run* runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught if "not saved" in str(each.message)]


class Module(pl.LightningModule):
    """A module that optimizes by itself, and whatever a test adds."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 1))

    def training_step(self, batch, index):
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self):
        return elastic_loader(TensorDataset(torch.ones(40, 4)), batch_size=4, seed=1)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(12, 4)), batch_size=4)


def fit(tmp_path, module, callbacks=(), **settings):
    """Train two epochs and return what was told."""
    trainer = pl.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **settings},
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, SpotCheckpoint(f"file://{tmp_path}/run", every_steps=5)],
        default_root_dir=str(tmp_path),
    )
    return warned(lambda: trainer.fit(module))


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 1}, {"accumulate_grad_batches": 2}])
def test_a_usual_module_is_told_nothing(tmp_path, settings):
    assert fit(tmp_path, Module(), **settings) == []


SWA = torch.optim.swa_utils.SWALR(torch.optim.SGD([torch.zeros(1)]), 1e-2)
HAS_FUNCTION = any(map(callable, SWA.state_dict().values()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightAveraging(),
        pytest.param(
            lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
            marks=pytest.mark.skipif(HAS_FUNCTION, reason="the state of SWALR in torch 2.6 is refused with words"),
        ),
    ],
)
def test_callbacks_that_save_their_averages_are_told_nothing(tmp_path, make):
    assert fit(tmp_path, Module(), [make()], max_epochs=3) == []


class Average(pl.Callback):
    """Keeps an average, and does not save it unless it *saves*."""

    def __init__(self, saves):
        self.saves = saves

    def on_fit_start(self, trainer, module):
        self.average = copy.deepcopy(module.net)

    def on_train_batch_end(self, trainer, module, *args):
        for mine, other in zip(self.average.parameters(), module.net.parameters(), strict=True):
            mine.data.mul_(0.9).add_(other.data, alpha=0.1)

    def state_dict(self):
        return self.average.state_dict() if self.saves else {}

    def load_state_dict(self, state):
        self.average.load_state_dict(state)


@pytest.mark.parametrize("saves", [True, False])
def test_the_average_of_a_callback_is_named(tmp_path, saves):
    told = fit(tmp_path, Module(), [Average(saves)])
    assert ["module Sequential `Average.average`" in each for each in told] == [True] * (not saves)


class Teacher(Module):
    """A student with a teacher that is hidden in a list, so that Lightning does not know it."""

    def __init__(self):
        super().__init__()
        self.teachers = [copy.deepcopy(self.net)]

    def on_train_batch_end(self, *args):
        for mine, other in zip(self.teachers[0].parameters(), self.net.parameters(), strict=True):
            mine.data = mine.data * 0.9 + other.data * 0.1


class ByHand(Module):
    """A module with an optimizer and a scheduler that Lightning does not know, in attributes of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.head = nn.Linear(1, 1)
        self.keep(torch.optim.Adam(self.head.parameters()))

    def keep(self, optimizer):
        self.other = optimizer
        self.schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def own(self):
        return self.other, self.schedule

    def training_step(self, batch, index):
        main, (other, schedule) = self.optimizers(), self.own()
        loss = self.head(self.net(batch[0])).square().mean()
        main.zero_grad()
        other.zero_grad()
        self.manual_backward(loss)
        main.step()
        other.step()
        schedule.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=1e-2)


class HiddenByHand(ByHand):
    """The same, with both of them in an object that has no state of its own."""

    def keep(self, optimizer):
        self.box = types.SimpleNamespace(other=optimizer, schedule=torch.optim.lr_scheduler.StepLR(optimizer, 2))

    def own(self):
        return self.box.other, self.box.schedule


class Mixing(Module):
    """A module that draws from a generator of its own, in batches from *first* on."""

    first = 0

    def __init__(self):
        super().__init__()
        self._mix = np.random.default_rng(1)

    def draw(self):
        return self._mix.random()

    def training_step(self, batch, index):
        factor = self.draw() if self.global_step >= self.first else 1.0
        return super().training_step([batch[0] * factor], index)


class LateMixing(Mixing):
    """The same, from the third batch on."""

    first = 2


class HiddenMixing(LateMixing):
    """The same, with the generator in an attribute of another object."""

    def __init__(self):
        super().__init__()
        self._mix = [self._mix]

    def draw(self):
        return self._mix[0].random()


class LateAverage(Module):
    """A module that keeps averages of its weights in a list, from the third batch on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        self.average = [each.detach().clone() for each in self.parameters()]

    def on_train_batch_end(self, *args):
        if self.global_step > 2:
            for mine, other in zip(self.average, self.parameters(), strict=True):
                mine.mul_(0.9).add_(other.detach(), alpha=0.1)


class Unlabeled(Module):
    """A module that reads another loader within its step."""

    def __init__(self):
        super().__init__()
        self.unlabeled = DataLoader(TensorDataset(torch.ones(400, 4)), batch_size=4)

    def on_train_start(self):
        self.extra = iter(self.unlabeled)

    def training_step(self, batch, index):
        return super().training_step([batch[0] + next(self.extra)[0]], index)


class Noise(Dataset):
    """A data set that draws from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.rand(4, generator=self.generator)


class Noisy(Module):
    """A module whose data set draws."""

    def train_dataloader(self):
        return DataLoader(_Pairs(Noise()), batch_size=4)


class _Pairs(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return (self.data[index],)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Teacher, ["module Sequential `module.teachers[0]`"]),
        (HiddenByHand, ["optimizer Adam `module.box.other`", "learning rate scheduler StepLR `module.box.schedule`"]),
        (HiddenMixing, ["random generator Generator `module._mix[0]`"]),
        (Unlabeled, ["position in the data of DataLoader `module.unlabeled`"]),
        (Noisy, ["random generator Generator `train_dataloader.dataset.data.generator`"]),
    ],
)
def test_a_module_of_lightning_is_told(tmp_path, make, names):
    [told] = fit(tmp_path, make())
    for name in names:
        assert name in told


@pytest.mark.parametrize("make", [ByHand, Mixing, LateMixing, LateAverage])
def test_a_module_of_lightning_is_told_nothing_of_what_its_attributes_save(tmp_path, make):
    assert fit(tmp_path, make()) == []


class Loop:
    """A loop of Accelerate, and whatever a test adds."""

    def __init__(self, tmp_path):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True)
        self.spot = SpotHook(self.accelerator, f"file://{tmp_path}/run", every_steps=5)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.loader = elastic_loader(TensorDataset(torch.ones(40, 4)), batch_size=4, seed=1)

    def run(self, each_step=lambda: None, *, without=()):
        names = [name for name in ("net", "optimizer", "schedule", "loader") if name not in without]
        prepared = self.accelerator.prepare(*(getattr(self, name) for name in names))
        for name, each in zip(names, prepared, strict=True):
            setattr(self, name, each)
        with self.spot as spot:
            spot.resume()
            for _ in spot.epochs(2):
                for (batch,) in spot.batches(self.loader):
                    self.optimizer.zero_grad()
                    self.accelerator.backward(self.net(batch).square().mean())
                    self.optimizer.step()
                    self.schedule.step()
                    each_step()
                    spot.after_step()
                with spot.pause():
                    for (batch,) in DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4):
                        self.net(batch)


def test_a_usual_loop_of_accelerate_is_told_nothing(tmp_path):
    loop = Loop(tmp_path)
    assert warned(loop.run) == []


def test_a_scheduler_that_is_not_prepared_is_saved(tmp_path):
    loop = Loop(tmp_path)
    assert warned(lambda: loop.run(without=["schedule"])) == []


class Decay:
    """A scheduler that is none of torch."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.factor = 1.0

    def step(self):
        self.factor *= 0.9

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state):
        self.factor = state["factor"]


def test_a_scheduler_that_torch_does_not_know_is_named(tmp_path):
    loop = Loop(tmp_path)
    loop.schedule = Decay(loop.optimizer)
    [told] = warned(lambda: loop.run(without=["schedule"]))
    assert "learning rate scheduler Decay `self.schedule`" in told
    assert "accelerator.prepare()" in told


class Outer(torch.optim.Optimizer):
    """An optimizer around another one, which saves the state of the inner one in some way, or does not."""

    def __init__(self, inner, saves):
        self.inner, self.saves = inner, saves
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups
        if saves == "shares":
            self.state = inner.state

    def step(self, closure=None):
        self.inner.step()

    def state_dict(self):
        if self.saves == "asks":
            return self.inner.state_dict()
        if self.saves == "copies":
            states = [self.inner.state[each] for group in self.param_groups for each in group["params"]]
            return {"state": dict(enumerate(states)), "param_groups": super().state_dict()["param_groups"]}
        return super().state_dict()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("saves", ["asks", "shares", "copies", "forgets"])
def test_an_optimizer_in_another_one_is_named_if_its_state_is_lost(tmp_path, saves, momentum):
    loop = Loop(tmp_path)
    inner = torch.optim.SGD(loop.net.parameters(), lr=1e-2, momentum=momentum)
    loop.optimizer = Outer(inner, saves)
    loop.schedule = torch.optim.lr_scheduler.StepLR(loop.optimizer, 2)
    told = warned(loop.run)
    is_lost = momentum > 0 and saves in ("shares", "forgets")  # Accelerate lets prepared optimizers share nothing
    assert ["optimizer SGD `" in each for each in told] == [True] * is_lost


@pytest.mark.parametrize("is_registered", [True, False])
def test_an_average_beside_accelerate_is_named(tmp_path, is_registered):
    loop = Loop(tmp_path)
    average = torch.optim.swa_utils.AveragedModel(loop.net)
    if is_registered:
        loop.accelerator.register_for_checkpointing(average)
    told = warned(lambda: loop.run(lambda: average.update_parameters(loop.net)))
    assert ["module AveragedModel `average`" in each for each in told] == [True] * (not is_registered)


def test_another_loader_beside_accelerate_is_named(tmp_path):
    loop = Loop(tmp_path)
    unlabeled = loop.accelerator.prepare(DataLoader(TensorDataset(torch.ones(400, 4)), batch_size=4))
    extra = iter(unlabeled)
    [told] = warned(lambda: loop.run(lambda: next(extra)))
    assert "position in the data of DataLoader" in told
    assert "unlabeled" in told
    assert "spot.batches(loader)" in told
