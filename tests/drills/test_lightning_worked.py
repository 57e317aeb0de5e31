"""Ordinary Lightning programs, each interrupted by a notice and by a kill between two saves, and equal in every bit."""

from __future__ import annotations

import signal

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.tuner import Tuner
from lightning_lives import BATCH, NUM_SAMPLES, TRACES, Interrupt, Lives, Net, data, make_trainer, merged
from torch.optim import LBFGS, Adafactor, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler, WeightedRandomSampler

from spot_plugins.data import elastic_loader

pytestmark = [
    pytest.mark.sampled,
    pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning"),
    pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch':RuntimeWarning"),
    # torch says so if a process continues at the end of an epoch, where the optimizer has not stepped yet
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]

STEPS = 24
INTERRUPTS = [(6, "notice"), (15, "kill")]
"""Batches of three epochs of eight. Every third step is saved."""


class Program(Net):
    """Records the learning rate too, and validates."""

    def __init__(self, trace, make_optimizer=None, make_schedule=None, make_loader=None, **schedule):
        super().__init__(trace)
        self.lr = 0.05
        self.make_optimizer = make_optimizer or (lambda parameters, lr: Adam(parameters, lr=lr))
        self.make_schedule, self.schedule = make_schedule, schedule
        self.make_loader = make_loader

    def training_step(self, batch, batch_idx):
        loss = self.compute(batch)
        self.log("loss", loss)
        return loss

    def record(self, number, *values):
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().record(number, *values, torch.as_tensor(rate, dtype=torch.float64))

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters(), lr=self.lr)
        if self.make_schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make_schedule(optimizer), **self.schedule}}

    def train_dataloader(self):
        return super().train_dataloader() if self.make_loader is None else self.make_loader(self.current_epoch)

    def validation_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            self.recorded["validation", self.trainer.global_step, batch_idx] = loss.item()
        return loss

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        predicted = self(batch[0])
        self.recorded["prediction", batch_idx] = predicted.tolist()
        return predicted

    def val_dataloader(self):
        return DataLoader(data(20), batch_size=BATCH)

    test_dataloader = predict_dataloader = val_dataloader


def assert_exact(folder, *callbacks, interrupts=INTERRUPTS, fit=None, settings=None, **program):
    """Compare the interrupted program with one that was left alone."""
    options = {} if fit is None else {"fit": fit}
    lives = Lives(
        folder, lambda trace: (Program(trace, **program), callbacks), every_steps=3, **options, **(settings or {})
    )
    return lives.compare(*interrupts)


def warm_up(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 20)], [4])


SCHEDULES = {
    "StepLR": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "MultiStepLR": lambda optimizer: MultiStepLR(optimizer, [1, 3, 9, 17], 0.5),
    "ExponentialLR": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1),
    "CyclicLR": lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, step_size_up=4),
    "warm-up": warm_up,
    "CosineAnnealingWarmRestarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 5, 2),
}


EACH_SCHEDULE = [(name, *phase) for name in SCHEDULES for phase in [("step", 2), ("epoch", 1)]]


@pytest.mark.parametrize(
    ("name", "interval", "frequency"), [*EACH_SCHEDULE, ("warm-up", "step", 1), ("StepLR", "epoch", 2)]
)
def test_schedules(name, interval, frequency, tmp_path):
    """Each interval and frequency continues in its own phase."""
    assert_exact(tmp_path, make_schedule=SCHEDULES[name], interval=interval, frequency=frequency)


@pytest.mark.parametrize(("interval", "frequency"), [("step", 1), ("step", 3), ("epoch", 1), ("epoch", 2)])
def test_a_schedule_that_waits_for_a_plateau(interval, frequency, tmp_path):
    """It compares with the best loss of an earlier life."""

    def make_schedule(optimizer):
        return ReduceLROnPlateau(optimizer, factor=0.7, patience=0, threshold=0.2)

    monitor = {"monitor": "loss" if interval == "step" else "val_loss", "strict": True}
    assert_exact(tmp_path, make_schedule=make_schedule, interval=interval, frequency=frequency, **monitor)


OPTIMIZERS = {
    "LBFGS": lambda parameters, lr: LBFGS(parameters, lr=lr, max_iter=3, history_size=4),
    "LBFGS with a line search": lambda parameters, lr: LBFGS(
        parameters, lr=lr, max_iter=3, line_search_fn="strong_wolfe"
    ),
    "Adafactor": Adafactor,
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(make_optimizer, tmp_path):
    """The whole state of an optimizer is restored."""
    assert_exact(tmp_path, make_optimizer=make_optimizer)


class Neighbors(Sampler):
    """A batch sampler of the user's own. It shuffles batches of neighbors by the stream of the process."""

    def __len__(self):
        return NUM_SAMPLES // BATCH

    def __iter__(self):
        for first in torch.randperm(len(self)).tolist():
            yield list(range(first * BATCH, (first + 1) * BATCH))


LOADERS = {
    "weighted": {"sampler": WeightedRandomSampler([1.0, 2.0] * 20, NUM_SAMPLES), "batch_size": BATCH},
    "subset": {"sampler": SubsetRandomSampler(range(NUM_SAMPLES)), "batch_size": BATCH},
    "own batches": {"batch_sampler": Neighbors()},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
def test_samplers(options, tmp_path):
    """The order of samples is the same for every sampler."""
    assert_exact(tmp_path, make_loader=lambda epoch: DataLoader(data(), **options))


SETTINGS = {
    "overfit_batches": {"overfit_batches": 7},
    "limit_train_batches": {"limit_train_batches": 7},
    "a share of the batches": {"limit_train_batches": 0.9},
    "validation within an epoch": {"val_check_interval": 3},
    "validation across epochs": {"val_check_interval": 11, "check_val_every_n_epoch": None},
    "clipped by norm": {"gradient_clip_val": 0.1},
    "clipped by value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "accumulation": {"accumulate_grad_batches": 2},
    "accumulation with a rest": {"accumulate_grad_batches": 3},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_trainer(settings, tmp_path):
    """Each setting holds in the epoch that continues."""
    interrupts = [(6, "notice"), (20, "kill")] if "accumulate_grad_batches" in settings else INTERRUPTS
    assert_exact(tmp_path, settings=settings, interrupts=interrupts)


def test_an_accumulation_that_changes_by_epoch(tmp_path):
    """The epoch that continues has the number of its own."""
    schedule = GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})
    assert_exact(tmp_path, schedule, interrupts=[(6, "notice"), (15, "kill"), (19, "notice")])


def test_loaders_that_are_made_again(tmp_path):
    """The loader of the epoch that continues is made for that epoch."""
    settings = {"reload_dataloaders_every_n_epochs": 1}
    assert_exact(
        tmp_path, settings=settings, make_loader=lambda epoch: elastic_loader(data(), batch_size=BATCH, seed=epoch)
    )


def compiled(program):
    program.layer = torch.compile(program.layer, backend="eager")
    return program


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lives", ["all", "first", "last"])
def test_a_compiled_submodule(lives, tmp_path):
    """A life is compiled or not, whatever the one before was."""
    control, first, last = {"all": (1, 1, 1), "first": (0, 1, 0), "last": (1, 0, 1)}[lives]
    is_compiled = iter([control, first, last, last])

    def make(trace):
        return compiled(Program(trace)) if next(is_compiled) else Program(trace), []

    Lives(tmp_path, make, every_steps=3).compare(*INTERRUPTS)


def test_a_learning_rate_is_looked_for_before_the_training(tmp_path):
    """Each life looks for it, as the program says, and the training that continues keeps the one of the first."""

    def fit(trainer, module):
        Tuner(trainer).lr_find(module, num_training=12, max_lr=0.5, early_stop_threshold=None)
        TRACES[module].clear()
        trainer.fit(module)

    assert_exact(tmp_path, fit=fit)


def test_validation_test_and_prediction_beside_the_training(tmp_path):
    """They load and save nothing, and see the weights of the whole training after it."""

    def fit(trainer, module):
        trainer.validate(module, verbose=False)
        trainer.fit(module)
        trainer.test(module, verbose=False)
        trainer.predict(module)

    assert_exact(tmp_path, fit=fit)


@pytest.mark.parametrize("is_given_again", [True, False])
def test_a_checkpoint_of_lightning_begins_the_run(is_given_again, tmp_path, recwarn):
    """The first life begins from it, and the lives after it continue the run."""
    first = make_trainer(tmp_path, max_epochs=1)
    first.fit(Program({}))
    path = tmp_path / "first.ckpt"
    first.save_checkpoint(path)
    starts = []

    def fit(trainer, module):
        starts.append(trainer)
        trainer.fit(module, ckpt_path=path if is_given_again or len(starts) < 3 else None)

    assert_exact(tmp_path, fit=fit, interrupts=[(14, "notice"), (19, "kill")])
    said = [str(warning.message) for warning in recwarn if "ckpt_path" in str(warning.message)]
    assert [line.endswith("choose a new URL") for line in said] == [True] * 2 * is_given_again


def test_a_training_that_is_interrupted_and_given_more_epochs(tmp_path):
    """
    It is the one that was planned so long. A validation may come twice, if the last step was saved before it.
    """
    lives = Lives(tmp_path, lambda trace: (Program(trace, make_schedule=SCHEDULES["StepLR"]), []), every_steps=3)
    expected, module, _ = lives.run("control")
    first, _, _ = lives.run("run", Interrupt(6, "notice"), max_epochs=1)
    second, _, _ = lives.run("run", max_epochs=2)
    third, resumed, _ = lives.run("run")

    twice = (first.keys() & second.keys()) | (second.keys() & third.keys())
    assert {key[0] for key in twice} <= {"validation"}
    assert merged(merged(first, second), third) == expected
    assert torch.equal(module.layer.weight, resumed.layer.weight)


@pytest.fixture
def sigint_as_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have pytest ignore it
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on


@pytest.mark.usefixtures("sigint_as_before")
def test_ctrl_c(tmp_path):
    """Lightning ends the program, and the next life continues."""
    assert_exact(tmp_path, interrupts=[(7, "Ctrl-C"), (15, "Ctrl-C")])


HOOKS = ["training_step", "validation_step", "on_train_epoch_end", "optimizer_step", "on_after_backward"]


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_of_the_program(hook, tmp_path):
    """The next life continues after a save of the life that failed, wherever it failed."""

    class Failed(Exception):  # noqa: N818
        pass

    class Fails(Program):
        def __init__(self, trace, fails):
            super().__init__(trace)
            if fails:
                original = getattr(self, hook)

                def fail(*args, **kwargs):
                    if self.trainer.global_step >= 14 and not self.trainer.sanity_checking:
                        raise Failed
                    return original(*args, **kwargs)

                setattr(self, hook, fail)

    fails = False
    lives = Lives(tmp_path, lambda trace: (Fails(trace, fails), []), every_steps=3)
    expected, module, _ = lives.run("control")
    fails = True
    with pytest.raises(Failed):
        lives.run("run")
    fails = False
    trace, resumed, _ = lives.run("run")
    assert len(trace) < len(expected)
    assert trace == {key: expected[key] for key in trace}
    assert torch.equal(module.layer.weight, resumed.layer.weight)
