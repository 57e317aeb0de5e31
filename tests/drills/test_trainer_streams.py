"""Trainings with transformers' Trainer over streams, interrupted, and equal in every bit to those left alone."""

from __future__ import annotations

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from trainer_lives import Interrupt, Life, Numbers, assert_exact
from transformers import Trainer

from spot_plugins.errors import ConfigError

pytestmark = [pytest.mark.sampled, pytest.mark.filterwarnings("ignore:fetching .* batches again to find the position")]


class Stream(IterableDataset):
    """The samples of a map-style data set in another order in each pass. Each worker has its share of them."""

    def __init__(self):
        self.samples = Numbers(21)
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(21, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        worker = get_worker_info()
        yield from map(self.samples.__getitem__, order if worker is None else order[worker.id :: worker.num_workers])


class Sized(Stream):
    """The same with a length, by which a trainer counts its epochs."""

    def __len__(self):
        return 21


def hugging_face(seed=3):
    """Return a stream of three shards with a shuffle buffer."""
    rows = [{"x": [0.1 * index, 1.0, -0.2 * index, 0.5], "number": index, "labels": index % 3} for index in range(21)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3).with_format("torch")
    return stream.shuffle(seed=seed, buffer_size=5)


def over(make):
    """Let a trainer have the data set that *make* returns."""
    return lambda given: given | {"train_dataset": make()}


STEPS, WINDOWS = {"max_steps": 26}, {"max_steps": 9, "gradient_accumulation_steps": 3}
BY_EPOCHS = {"eval_strategy": "epoch"}
KEPT = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
CASES = {
    "in the second pass": (Stream, STEPS, ("train", 15)),
    "hugging face, accumulation": (hugging_face, WINDOWS, ("train", 15)),
    "in the evaluation after a pass": (Stream, STEPS | BY_EPOCHS, ("evaluate", 2)),
}
MORE = {
    "at the end of a pass": (Stream, STEPS, ("train", 11)),
    "with a length": (Sized, BY_EPOCHS, ("evaluate", 2)),
    "workers": (Stream, STEPS | {"dataloader_num_workers": 2}, ("train", 15)),
    "hugging face, workers": (hugging_face, STEPS | {"dataloader_num_workers": 2}, ("train", 15)),
    "by each rank": (Stream, STEPS | {"accelerator_config": {"dispatch_batches": False}}, ("train", 15)),
    "in an evaluation by steps": (hugging_face, STEPS | {"eval_strategy": "steps", "eval_steps": 3}, ("evaluate", 5)),
    "hugging face, persistent workers": (hugging_face, STEPS | KEPT, ("train", 7)),
}
SOAK = [pytest.param(*case, id=name, marks=pytest.mark.soak) for name, case in MORE.items()]


@pytest.mark.parametrize(("make", "settings", "at"), [*(pytest.param(*CASES[name], id=name) for name in CASES), *SOAK])
def test_a_notice(make, settings, at, tmp_path):
    """The samples of each step are those of a training that was left alone, in their order."""
    assert_exact(tmp_path, ("notice", *at), change=over(make), **settings)


@pytest.mark.filterwarnings("ignore:pause.. in the middle of a step")
def test_an_evaluation_within_a_step(tmp_path):
    """The last batches of a pass wait for those of the next one. A notice has to wait as well."""
    lives = assert_exact(tmp_path, ("notice", "evaluate", 2), change=over(Stream), **WINDOWS, **BY_EPOCHS)

    assert lives[1].trainer.state.global_step == 4, "the first step of the second pass"


def test_a_kill(tmp_path):
    """The step after the newest save is trained again, in the second pass."""
    assert_exact(tmp_path, ("kill", "train", 16), change=over(Stream), every_steps=4, **STEPS)


def test_a_longer_training_continues_in_the_midst_of_a_pass(tmp_path):
    """The callbacks of the end of an epoch have run at the last step, and the pass is not over."""

    def life(url, steps):
        settings = {"max_steps": steps, "lr_scheduler_type": "constant"}
        made = Life(f"{tmp_path}/{url}", tmp_path / url, change=over(Stream), **settings)
        assert made.run() == "finished"
        return made

    *_, longer = [life("run", steps) for steps in (7, 13, 15)]
    alone = life("alone", 15)

    for name, value in alone.state()["model"].items():
        assert value.equal(longer.state()["model"][name]), name


class Unseeded(Stream):
    """A stream that no process yields in the order of another one."""

    def __iter__(self):
        order = torch.randperm(21, generator=torch.Generator().manual_seed(torch.seed())).tolist()
        yield from map(self.samples.__getitem__, order)


def test_another_order_is_told(tmp_path):
    """The first batch of the pass is compared with the one that was trained on."""

    def life(interrupt=None):
        return Life(f"{tmp_path}/run", tmp_path / "output", interrupt, change=over(Unseeded), **STEPS)

    assert life(Interrupt("notice", "train", 4)).run() == "Preempted"

    with pytest.warns(UserWarning, match="that were fetched again are not those that were trained on"):
        assert life().run() == "finished"


REFUSED = {
    "no seed": (lambda: hugging_face(seed=None), {}, "a stream of Hugging Face that is shuffled without a seed"),
    "no order": (Stream, {"dataloader_num_workers": 1, "dataloader_in_order": False}, "in_order=False yields batches"),
}


@pytest.mark.parametrize(("make", "settings", "words"), REFUSED.values(), ids=REFUSED)
def test_a_stream_without_an_order_is_refused(make, settings, words, tmp_path):
    """In words, before a step is trained."""
    life = Life(f"{tmp_path}/run", tmp_path / "output", change=over(make), **STEPS, **settings)

    with pytest.raises(ConfigError, match=words):
        life.run()

    assert life.trace == {}


def test_other_workers_are_refused(tmp_path):
    """They would have other shares of the stream."""

    def life(interrupt=None, **settings):
        return Life(f"{tmp_path}/run", tmp_path / "output", interrupt, change=over(Stream), **STEPS, **settings)

    assert life(Interrupt("notice", "train", 4)).run() == "Preempted"

    with pytest.raises(ConfigError, match="num_workers=1 differs from num_workers=0 in the checkpoint, and a stream"):
        life(dataloader_num_workers=1).run()


class Fixed(Numbers):
    """Samples that draw nothing."""

    def __getitem__(self, index):
        return {"x": torch.sin(torch.arange(1.0, 5.0) * (index + 1)), "number": index, "labels": index % 3}


class FixedStream(Stream):
    """The stream of them."""

    def __init__(self):
        super().__init__()
        self.samples = Fixed(21)


def shards():
    """Return a stream of Hugging Face without a buffer, whose state holds the position."""
    rows = datasets.Dataset.from_list(
        [each | {"x": each["x"].tolist()} for each in map(Fixed(21).__getitem__, range(21))]
    )
    return rows.to_iterable_dataset(num_shards=3).with_format("torch")


class StatefulTrainer(Trainer):
    """Makes a loader of torchdata, in the only way that there is: the arguments of a Trainer have no setting for it."""

    is_prepared = True

    def get_train_dataloader(self):
        args, self.accelerator.dataloader_config.use_stateful_dataloader = self.args, True
        loader = StatefulDataLoader(
            self.train_dataset,
            batch_size=2,
            shuffle=None if isinstance(self.train_dataset, IterableDataset) else True,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader) if self.is_prepared else loader


def over_fixed(make):
    """Let a trainer have data that *make* returns, and draw nothing when it collates."""
    return lambda given: given | {"train_dataset": make(), "data_collator": default_collate}


WORKERS = {"dataloader_num_workers": 2}
STATEFUL = {
    "shards": (shards, STEPS, ("train", 15)),
    "accumulation": (shards, WINDOWS, ("train", 15)),
}
MORE_STATEFUL = {
    "a stream of the program": (FixedStream, STEPS, ("train", 15)),
    "a stream of the program, accumulation": (FixedStream, WINDOWS, ("train", 11)),
    "map-style": (lambda: Fixed(21), {}, ("train", 15)),
    "map-style, accumulation": (lambda: Fixed(21), {"gradient_accumulation_steps": 3}, ("train", 15)),
    "the end of a pass": (shards, STEPS, ("train", 11)),
    "an evaluation": (shards, STEPS | BY_EPOCHS, ("evaluate", 2)),
    "workers": (shards, STEPS | WORKERS, ("train", 15)),
    "persistent workers": (shards, STEPS | KEPT, ("train", 15)),
}
SOAK_STATEFUL = [pytest.param(*case, id=name, marks=pytest.mark.soak) for name, case in MORE_STATEFUL.items()]


@pytest.mark.filterwarnings("ignore:the workers of the training loader begin anew")
@pytest.mark.parametrize(
    ("make", "settings", "at"), [*(pytest.param(*STATEFUL[name], id=name) for name in STATEFUL), *SOAK_STATEFUL]
)
def test_a_loader_that_restores_itself(make, settings, at, tmp_path):
    """The loader of torchdata continues from its state."""
    assert_exact(tmp_path, ("notice", *at), change=over_fixed(make), make=StatefulTrainer, **settings)


def test_samples_that_draw_in_a_loader_that_restores_itself_are_told(tmp_path):
    """Accelerate has drawn the next batch ahead. The state of the loader lacks the numbers that it drew."""

    def life(interrupt=None):
        change = over(lambda: Fixed(21))  # the collate function draws
        return Life(f"{tmp_path}/run", tmp_path / "output", interrupt, change=change, make=StatefulTrainer)

    assert life(Interrupt("notice", "train", 4)).run() == "Preempted"

    with pytest.warns(UserWarning, match="the collate function draw random numbers in the training process"):
        assert life().run() == "finished"


def test_a_loader_that_restores_itself_has_to_be_prepared(tmp_path):
    """Else nobody would give it its state."""

    class Unprepared(StatefulTrainer):
        is_prepared = False

    life = Life(f"{tmp_path}/run", tmp_path / "output", change=over_fixed(shards), make=Unprepared, **STEPS)

    with pytest.raises(ConfigError, match="this StatefulDataLoader is not prepared"):
        life.run()

    assert life.trace == {}
