"""Interrupted at any batch and resumed, a Lightning training sees the batches of one that was never interrupted."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from contextlib import suppress

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.data import ElasticSampler, elastic_loader
from spot_plugins.errors import Preempted
from spot_plugins.events import Committed
from spot_plugins.lightning import SpotCheckpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined:UserWarning"),
]


class Crashed(Exception):
    """Stands for a machine that is gone without a word."""


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Stream(IterableDataset):
    """The same samples one after another, without a length, and with a state as the torchdata documentation has it."""

    def __init__(self, length):
        self.length = length
        self.next = 0

    def __iter__(self):
        while self.next < self.length:
            self.next += 1
            yield torch.tensor([float(self.next - 1)])
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Drawing(Sampler):
    """A sampler of the user that draws from torch's stream when its iterator is asked for the first index."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        yield from torch.randperm(self.length).tolist()


def elastic(length, **settings):
    return elastic_loader(Numbers(length), **{"batch_size": 5, "seed": 3} | settings)


def plain(length, **settings):
    return DataLoader(Numbers(length), **{"batch_size": 5, "shuffle": True} | settings)


def stateful(length, **settings):
    return StatefulDataLoader(Numbers(length), **{"batch_size": 5, "shuffle": True} | settings)


class Net(LightningModule):
    """Remembers what it was trained on, and draws random numbers where programs do."""

    def __init__(self, make, seen):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.make = make
        self.seen = seen
        self.batch_size = 5
        self.lr = 0.1

    def train_dataloader(self):
        return self.make(self)

    def val_dataloader(self):
        return DataLoader(Numbers(4), batch_size=2)

    def on_train_epoch_start(self):
        torch.rand(())

    def training_step(self, batch, batch_idx):
        torch.rand(())
        if any(isinstance(callback, Interrupt) for callback in self.trainer.callbacks):  # no finder is at work
            self.seen.append((self.current_epoch, batch_idx, readable(batch)))
        parts = [part for part in flat(batch) if part is not None]
        return sum(self.layer(part / 40).square().mean() for part in parts)

    def validation_step(self, batch, batch_idx):
        if any(isinstance(callback, Interrupt) for callback in self.trainer.callbacks):
            self.seen.append((self.current_epoch, "validation", batch_idx))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)}


def flat(batch):
    if isinstance(batch, dict):
        return [part for value in batch.values() for part in flat(value)]
    return [part for value in batch for part in flat(value)] if isinstance(batch, list | tuple) else [batch]


def readable(batch):
    return [None if part is None else part.flatten().int().tolist() for part in flat(batch)]


class Interrupt(Callback):
    """Interrupts the training before a batch, counted over all epochs of this process and those before it."""

    def __init__(self, at, how):
        self.at = at
        self.how = how
        self.committed = threading.Event()

    def on_event(self, event):
        if isinstance(event, Committed):
            self.committed.set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at:
            if self.how == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                assert self.committed.wait(60)
                raise Crashed


def fit(folder, make, seen, *, at=None, how="SIGTERM", callbacks=(), **settings):
    """Train until the end or an interruption. Return the weights."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    quiet["num_sanity_val_steps"] = 0
    interrupt = Interrupt(at, how)
    spot = SpotCheckpoint(str(folder / "run"), every_steps=3, on_event=interrupt.on_event)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[spot, interrupt, *callbacks],
        **quiet | {"max_epochs": 3} | settings,
    )
    module = Net(make, seen)
    with warnings.catch_warnings(), suppress(Preempted, Crashed):
        warnings.filterwarnings("ignore", message=".*find the position in the training data.*")
        trainer.fit(module)
        assert at is None or at >= trainer.global_step, "the training was not interrupted"
    return module.layer.weight.item(), spot.resumed_from


def assert_same(tmp_path, make, steps, *, how="SIGTERM", **settings):
    """Compare trainings that are interrupted before each of *steps* with one that is not."""
    control = []
    weight, _ = fit(tmp_path / "control", make, control, **settings)
    for at in steps:
        first, rest = [], []
        folder = tmp_path / f"{how} {at}"
        fit(folder, make, first, at=at, how=how, **settings)
        again, step = fit(folder, make, rest, **settings)
        assert step is not None
        count = len(control) - len(rest)
        assert rest == control[count:], f"interrupted at {at}, resumed from {step}"
        assert first[:count] == control[:count]
        # nothing in between is left out
        assert how != "SIGTERM" or len(first) >= count
        assert again == weight
    return control


KINDS = {"elastic": elastic, "plain": plain, "stateful": stateful}
MODES = ["min_size", "max_size", "max_size_cycle"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_loaders_of_unlike_length(kind, mode, tmp_path):
    """A short loader ends early, or begins again within the epoch, also several times."""
    first, second = (elastic, plain) if kind == "mixed" else (KINDS[kind], KINDS[kind])

    def make(module):
        return CombinedLoader({"a": first(40), "b": second(15)}, mode)

    control = assert_same(tmp_path, make, [2, 4, 6, 7] if mode == "min_size" else [2, 3, 11, 14, 16])

    assert len([entry for entry in control if entry[1] != "validation"]) == 3 * (3 if mode == "min_size" else 8)


@pytest.mark.parametrize("kind", KINDS)
def test_loaders_of_unlike_length_with_workers(kind, tmp_path):
    """The batches that workers have fetched ahead do not count."""
    make = KINDS[kind]
    assert_same(tmp_path, lambda module: {"a": make(40, num_workers=2), "b": make(15, num_workers=2)}, [13])


@pytest.mark.parametrize("how", ["SIGTERM", "crash"])
def test_nested_collections_of_loaders(how, tmp_path):
    """Lightning's default mode, which Lightning makes of any dict or list; three kinds of loaders in one."""

    def make(module):
        return {"a": [plain(40), stateful(15)], "b": {"c": elastic(20), "d": DataLoader(Numbers(7), batch_size=2)}}

    assert_same(tmp_path, make, [5, 11, 14, 16], how=how)


@pytest.mark.parametrize("mode", ["max_size", "max_size_cycle", "min_size"])
@pytest.mark.parametrize("other", [elastic, plain, stateful])
def test_one_of_two_loaders_has_no_length(other, mode, tmp_path):
    """Lightning fetches one batch of both ahead."""

    def make(module):
        return CombinedLoader([StatefulDataLoader(Stream(40), batch_size=5), other(15)], mode)

    assert_same(tmp_path, make, [2, 3, 4, 6] if mode == "min_size" else [3, 7, 11, 14, 16])


def test_a_plain_stream_beside_a_loader_with_a_length(tmp_path):
    """Neither of them keeps a state."""
    assert_same(tmp_path, lambda module: [DataLoader(Stream(40), batch_size=5), plain(15)], [7, 11])


def test_a_sampler_that_draws_from_the_stream_of_the_process(tmp_path):
    """Its order depends on when it draws, in every pass over the loader."""

    def make(module):
        return {
            "a": DataLoader(Numbers(40), batch_size=5, sampler=Drawing(40)),
            "b": plain(15, sampler=Drawing(15), shuffle=False),
        }

    assert_same(tmp_path, make, [2, 4, 7, 11, 14])


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_on_the_batches_of_an_epoch(mode, tmp_path):
    """The limit holds for each loader."""
    assert_same(
        tmp_path, lambda module: CombinedLoader([elastic(40), plain(15)], mode), [3, 5], limit_train_batches=0.8
    )


def test_lightning_itself_refuses_loaders_one_after_another_in_training(tmp_path):
    """Its own error is what the user sees."""
    with pytest.raises(ValueError, match="does not support the `CombinedLoader"):
        fit(tmp_path, lambda module: CombinedLoader([elastic(40), elastic(15)], "sequential"), [])


@pytest.mark.parametrize(
    "settings",
    [
        {"reload_dataloaders_every_n_epochs": 1},
        {"reload_dataloaders_every_n_epochs": 2, "max_epochs": 5},
        {"limit_train_batches": 6},
        {"overfit_batches": 4},
        {"val_check_interval": 0.5},
        {"val_check_interval": 11, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_settings_of_the_trainer_that_change_the_epoch(settings, tmp_path):
    """They change how many batches come, when loaders are made, and what comes between."""
    steps = [4, 7] if "accumulate_grad_batches" in settings else [5, 8, 11]
    assert_same(tmp_path, lambda module: [plain(40), elastic(15)], steps, **settings)


LOADERS = {
    "weighted": lambda: DataLoader(
        Numbers(40), batch_size=5, sampler=WeightedRandomSampler([1.0, 2.0] * 20, num_samples=40)
    ),
    "subset": lambda: DataLoader(Subset(Numbers(60), range(10, 50)), batch_size=5, shuffle=True),
    "subset sampler": lambda: DataLoader(Numbers(60), batch_size=5, sampler=SubsetRandomSampler(range(40))),
    "batch sampler": lambda: DataLoader(
        Numbers(40), batch_sampler=BatchSampler(RandomSampler(range(40)), batch_size=5, drop_last=True)
    ),
    "elastic sampler": lambda: DataLoader(Numbers(40), batch_size=5, sampler=ElasticSampler(40, seed=4)),
    "persistent workers": lambda: plain(40, num_workers=2, persistent_workers=True),
    "persistent workers, elastic": lambda: elastic(40, num_workers=2, persistent_workers=True),
    "list": lambda: list(torch.arange(40.0).view(8, 5, 1)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_one_loader(name, tmp_path):
    """Whatever decides its order."""
    assert_same(tmp_path, lambda module: LOADERS[name](), [11] if "workers" in name else [3, 8, 11, 16])


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_finder_among_the_callbacks(kind, tmp_path):
    """It trains on its own before the training begins, and the loaders are made again after it."""

    def make(module):
        return {"a": KINDS[kind](40), "b": KINDS[kind](15)}

    control = assert_same(tmp_path, make, [2, 11, 14], callbacks=[LearningRateFinder(num_training_steps=6)])

    assert len([entry for entry in control if entry[1] != "validation"]) == 3 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_size_finder_among_the_callbacks(kind, tmp_path):
    """It makes loaders of several sizes, and the training begins with the last of them."""

    def make(module):
        return KINDS[kind](40, batch_size=module.batch_size)

    control = assert_same(
        tmp_path, make, [2, 11, 14], callbacks=[BatchSizeFinder(init_val=2, max_trials=2, steps_per_trial=2)]
    )

    assert len([entry for entry in control if entry[1] != "validation"]) == 3 * 10
