"""Interrupted at any batch and resumed, a Lightning training sees the batches of one that was never interrupted."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from weakref import WeakKeyDictionary

import pytest
import torch
from hearing import until
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import CombinedLoader
from streams import Buffered, Evolving, Kept, Stream
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.data import ElasticSampler, elastic_loader
from spot_plugins.errors import ConfigError, Preempted
from spot_plugins.events import Committed
from spot_plugins.lightning import SpotCheckpoint

pytestmark = [
    pytest.mark.sampled,
    pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning"),
    pytest.mark.filterwarnings("ignore:the workers of the training loader begin anew:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined:UserWarning"),
]


class MachineGoneError(Exception):
    """Stands for a machine that is gone without a word."""


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([float(index)])


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


SEEN = WeakKeyDictionary()  # by module, because attributes of a module are restored


class Net(LightningModule):
    """Remembers what it was trained on, and draws random numbers where programs do."""

    def __init__(self, make, seen):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.make = make
        SEEN[self] = seen
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
            SEEN[self].append((self.current_epoch, batch_idx, readable(batch)))
        parts = [part for part in flat(batch) if part is not None]
        return sum(self.layer(part / 40).square().mean() for part in parts)

    def validation_step(self, batch, batch_idx):
        if any(isinstance(callback, Interrupt) for callback in self.trainer.callbacks):
            SEEN[self].append((self.current_epoch, "validation", batch_idx))

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
                # These batches take less time than a notice takes to be known.
                (spot,) = (each for each in trainer.callbacks if isinstance(each, SpotCheckpoint))
                until(lambda: spot._fit.session.notice is not None, "the notice is known")
            else:
                assert self.committed.wait(300)
                raise MachineGoneError


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
    with suppress(Preempted, MachineGoneError):
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


def resized(make, first, then):
    """Return the loaders of the first process and those of the second one, which have another batch size."""
    sizes = iter([first, then])
    size = {}

    def loaders(module):
        if module not in size:
            size[module] = next(sizes)
        return make(40, batch_size=size[module])

    return loaders


def samples(seen, epoch):
    return [sample for entry in seen if entry[0] == epoch and entry[1] != "validation" for sample in entry[2][0]]


@pytest.mark.parametrize(("first", "then", "at"), [(5, 10, 11), (10, 5, 5), (5, 10, 10), (5, 3, 11), (5, 40, 15)])
@pytest.mark.parametrize(
    "make",
    [
        elastic,
        lambda length, batch_size=5: DataLoader(Numbers(length), batch_size, sampler=ElasticSampler(length, seed=3)),
    ],
    ids=["loader", "sampler"],
)
def test_another_batch_size_goes_on_with_the_next_sample(make, first, then, at, tmp_path):
    """
    Every sample of the epoch is seen once, and all that ends an epoch runs: validation, schedulers, the next epoch.
    """
    control, before, after = [], [], []
    fit(tmp_path / "control", lambda module: make(40), control)
    loaders = resized(make, first, then)

    fit(tmp_path, loaders, before, at=at)
    fit(tmp_path, loaders, after)

    trained = len([entry for entry in before if entry[1] != "validation"]) * first
    seen = samples(before, 0) + samples(before, 1) + samples(after, 1) + samples(after, 2)
    assert seen == samples(control, 0) + samples(control, 1) + samples(control, 2)
    assert len([entry for entry in after if entry[0] == 1 and entry[1] != "validation"]) == -(-(80 - trained) // then)
    assert [entry for entry in after if entry[1] == "validation"] == [
        (1, "validation", 0),
        (1, "validation", 1),
        (2, "validation", 0),
        (2, "validation", 1),
    ]


def test_a_plain_loader_goes_on_with_the_next_sample_too_where_the_batches_divide(tmp_path):
    """Its order does not depend on the batch size."""
    control, before, after = [], [], []
    fit(tmp_path / "control", lambda module: plain(40), control)
    loaders = resized(plain, 5, 10)

    fit(tmp_path, loaders, before, at=9)
    fit(tmp_path, loaders, after)

    seen = samples(before, 0) + samples(before, 1) + samples(after, 1) + samples(after, 2)
    assert seen == samples(control, 0) + samples(control, 1) + samples(control, 2)
    assert len([entry for entry in after if entry[1] == "validation"]) == 4


def test_a_plain_loader_says_which_samples_come_twice(tmp_path):
    """Half of a batch cannot be fetched."""
    before, after = [], []
    loaders = resized(plain, 5, 10)
    fit(tmp_path, loaders, before, at=10)

    with pytest.warns(UserWarning, match="5 samples of this epoch are trained on twice, because 15 were trained on"):
        fit(tmp_path, loaders, after)

    assert sorted(samples(after, 1)) == sorted(set(range(40)) - set(samples(before, 1)[:10]))


def test_a_stateful_loader_of_another_batch_size_is_refused(tmp_path):
    """Its state counts batches."""
    loaders = resized(stateful, 5, 10)
    fit(tmp_path, loaders, [], at=10)

    with pytest.raises(ConfigError, match=r"batch_size over 1 ranks=10 differs from .*=5 in the checkpoint"):
        fit(tmp_path, loaders, [])


@pytest.mark.parametrize("at", [8, 11])
@pytest.mark.parametrize("make", [plain, stateful])
def test_data_that_grew_is_named(make, at, tmp_path):
    """The order of all epochs is another one."""
    fit(tmp_path, lambda module: make(40), [], at=at)

    told = "the training data has num_samples=50, and num_samples=40 in the checkpoint, so the rest of this epoch has"
    with pytest.warns(UserWarning, match=told):
        fit(tmp_path, lambda module: make(50), [])


def test_another_number_of_loaders_is_refused(tmp_path):
    """Of one that is new nobody knows where it should begin."""
    fit(tmp_path, lambda module: [elastic(40)], [], at=4)

    with pytest.raises(ConfigError, match="train_dataloader returned 2 loaders, and 1 are in the checkpoint"):
        fit(tmp_path, lambda module: [elastic(40), elastic(15)], [])


@pytest.mark.parametrize("data", [Stream, Kept, Evolving])
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}],
    ids=["", "workers", "persistent"],
)
def test_the_epochs_after_a_resumed_stream_begin_at_its_beginning(data, settings, tmp_path):
    """An uninterrupted training never restores its data set, so it must not stay restored."""
    if data is Evolving and "num_workers" in settings:
        pytest.skip("workers begin with epoch 0 in every epoch, as a copy of the data set of the program")
    steps = [11] if settings else [5, 8, 11]

    assert_same(tmp_path, lambda module: StatefulDataLoader(data(40), batch_size=5, **settings), steps)


def test_a_stream_whose_state_lacks_its_buffer_is_named_at_once(tmp_path):
    """In the first process, before anything is lost."""
    with pytest.warns(UserWarning, match=r"Buffered\.state_dict\(\) does not hold .* Use a plain torch DataLoader"):
        fit(tmp_path, lambda module: StatefulDataLoader(Buffered(40), batch_size=5), [], max_epochs=1)


def test_batches_are_passed_over_if_the_setting_says_so(tmp_path, monkeypatch):
    """Two loaders of different length, one of which begins again within the epoch."""
    monkeypatch.setenv("SPOT_FAST_FORWARD", "skip")
    asked, make = [], Numbers.__getitem__
    monkeypatch.setattr(Numbers, "__getitem__", lambda self, index: asked.append(index) or make(self, index))

    # Step 3 is the only one that is saved before the crash.
    with pytest.warns(UserWarning, match=r"passing over [13] batches without fetching them"):
        assert_same(tmp_path, lambda module: [plain(40), plain(10)], [4], how="kill", limit_val_batches=0)

    batches_of_control, batches_before_crash, batches_after = 3 * 8, 5, 3 * 8 - 3
    assert len(asked) == (batches_of_control + batches_before_crash + batches_after) * 10


@pytest.mark.parametrize("data", [Stream, Kept, Evolving])
@pytest.mark.parametrize("batch_size", [5, 30])
def test_a_stream_whose_state_is_whole_is_not_named(data, batch_size, tmp_path):
    """Also if the second batch is the incomplete last one. Warnings are errors in these tests."""
    fit(tmp_path, lambda module: StatefulDataLoader(data(40), batch_size=batch_size), [], max_epochs=2)


def test_a_stream_in_a_plain_loader_is_exact_and_the_advice_fits_it(tmp_path):
    """An elastic loader refuses streams."""
    control, before, after = [], [], []
    loaders = lambda module: DataLoader(Buffered(40), batch_size=5)  # noqa: E731
    fit(tmp_path / "control", loaders, control)
    fit(tmp_path, loaders, before, at=11)

    with pytest.warns(UserWarning, match=r"fetching . batches again") as warned:
        fit(tmp_path, loaders, after)

    (message,) = [str(warning.message) for warning in warned if "batches again" in str(warning.message)]
    assert "StatefulDataLoader" in message
    assert "elastic_loader" not in message
    assert after == control[-len(after) :]
