"""The loader whose samples depend on (seed, epoch, index) alone, in plain loops and inside the real hosts."""

import os
import pickle
import random
import warnings
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import Dataset, IterableDataset, RandomSampler

from spot_plugins.data import ElasticSampler, elastic_loader
from spot_plugins.errors import ConfigError


class Augmented(Dataset):
    """Samples that are random in every way a transform can be: [index, python's, numpy's, torch's number]."""

    vocabulary = ("a", "b")

    def __init__(self, length=12):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == -1:
            raise LookupError("no such sample")
        drawn = [random.random(), np.random.random(), torch.rand(()).item()]
        return torch.tensor([index, *drawn], dtype=torch.float64)


class Stream(IterableDataset):
    """Has a length, but no index."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(range(3))


def masked(samples):
    """A collate function with randomness of its own, as for masked language models."""
    batch = torch.stack(samples)
    return torch.cat([batch, torch.rand(len(samples), 1, dtype=torch.float64)], dim=1)


def streams():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return torch.cat(list(loader))


@pytest.fixture(scope="module")
def reference():
    """Three epochs of what every loader below must yield, by index: {epoch: batches in order}."""
    loader = elastic_loader(Augmented(), batch_size=4, seed=3, collate_fn=masked)
    return [epoch_of(loader, epoch) for epoch in range(3)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_persistent_workers_yield_what_no_workers_yield_in_every_epoch(num_workers, reference):
    """
    The epoch reaches workers that were started in the first one; who draws a sample does not matter.
    """
    loader = elastic_loader(
        Augmented(),
        batch_size=4,
        seed=3,
        collate_fn=masked,
        num_workers=num_workers,
        persistent_workers=True,
    )
    for epoch, expected in enumerate(reference):
        assert epoch_of(loader, epoch).equal(expected)


def test_all_that_a_worker_gets_survives_pickling(reference):
    """
    With the spawn start method everything travels to the workers by pickle, the indices by queue in any case.
    """
    loader = elastic_loader(Augmented(), batch_size=12, seed=3, collate_fn=masked, num_workers=1)
    loader.sampler.set_epoch(2)
    indices = next(iter(loader.batch_sampler))

    dataset, collate_fn, _, indices = pickle.loads(
        pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn, indices))
    )

    assert collate_fn(dataset.__getitems__(indices))[:, :4].equal(reference[2][:, :4])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_samples_and_the_same_augmentation(num_workers, reference):
    """
    Also after other things were drawn meanwhile, and whatever workers had fetched ahead.
    """
    torch.manual_seed(987)
    loader = elastic_loader(
        Augmented(), batch_size=4, seed=3, collate_fn=masked, num_workers=num_workers, worker_init_fn=None
    )
    loader.sampler.load_state_dict({**loader.sampler.state_dict(), "epoch": 2, "consumed": 4})

    assert torch.cat(list(loader)).equal(reference[2][4:])
    assert len(loader) == 3


def test_two_ranks_see_the_augmentation_that_one_rank_sees(reference):
    """
    A sample is augmented alike wherever it is drawn.
    """
    shares = []
    for rank in range(2):
        loader = elastic_loader(Augmented(), batch_size=2, seed=3)
        loader.sampler.bind(num_replicas=2, rank=rank)
        shares.append(epoch_of(loader, 1))

    assert torch.stack(shares, dim=1).flatten(0, 1).equal(reference[1][:, :4])


def test_samples_epochs_and_streams_differ_from_each_other(reference):
    """
    Keyed is not constant: no two draws of three epochs are the same, python's, numpy's and torch's included.
    """
    drawn = torch.cat(reference)[:, 1:].flatten().tolist()

    assert len(set(drawn)) == len(drawn)


def test_the_three_streams_of_a_sample_have_nothing_in_common():
    """
    All are Mersenne twisters: seeded alike, they would draw the very same bits.
    """

    class Raw:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            words = random.getrandbits(32), np.random.randint(2**32, dtype=np.uint32)
            return *(int(word) % 2**31 for word in words), int(torch.empty((), dtype=torch.int32).random_())

    drawn = [number for batch in elastic_loader(Raw(), batch_size=1, collate_fn=list) for number in batch[0]]

    assert len(set(drawn)) == 60


@pytest.mark.parametrize("collate_fn", [None, masked])
def test_the_streams_of_the_training_process_do_not_notice_the_loader(collate_fn):
    """
    Loading in the training process seeds its streams and puts them back: dropout goes on undisturbed.
    """
    np.random.normal()  # leaves half of a pair behind in numpy's state
    before = streams()
    loader = elastic_loader(Augmented(), batch_size=5, collate_fn=collate_fn)
    iterator = iter(loader)
    next(iterator)

    assert streams() == before
    list(loader)
    assert streams() == before


def test_the_streams_are_put_back_when_a_sample_fails():
    """
    Some training loops skip samples that cannot be read.
    """
    loader = elastic_loader(Augmented(), batch_size=2)
    key = next(iter(loader.sampler))
    before = streams()

    with pytest.raises(LookupError):
        loader.dataset.__getitems__([key, type(key)(-1, 0)])

    assert streams() == before


def test_the_data_set_inside_can_be_used_as_before():
    """
    Length, attributes and samples by plain number come from the user's data set, also after pickling.
    """
    for dataset in (
        elastic_loader(Augmented(), batch_size=2).dataset,
        pickle.loads(pickle.dumps(elastic_loader(Augmented(), batch_size=2).dataset)),
    ):
        assert len(dataset) == 12
        assert dataset.vocabulary == ("a", "b")
        with pytest.raises(AttributeError, match="nothing"):
            _ = dataset.nothing
        torch.manual_seed(1)
        assert dataset[3].tolist()[0] == 3
        assert dataset[3].tolist() != dataset[3].tolist()
        assert [sample[0].item() for sample in dataset.__getitems__([5, 6])] == [5, 6]


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (Stream(), {}, "dataset=Stream has no length or no index"),
        (iter([1, 2]), {}, "dataset=list_iterator"),
        ([1, 2], {"in_order": False, "num_workers": 1}, "in_order=False yields batches in no fixed order"),
        ([1, 2], {"sampler": RandomSampler([1, 2])}, "sampler=RandomSampler cannot be given.*Leave sampler out"),
        ([1, 2], {"sampler": [0], "shuffle": False}, "sampler=list cannot be given"),
        ([1, 2], {"batch_sampler": [[0, 1]]}, "batch_sampler=list cannot be given"),
        ([1, 2], {"batch_size": 0}, "batch_size=0 must be at least 1. Write for example batch_size=4"),
        ([1, 2], {"batch_size": -3}, "batch_size=-3 must be at least 1"),
        ([1, 2], {"batch_size": None}, "batch_size=None must be a whole number. Write for example batch_size=1"),
        ([1, 2], {"batch_size": True}, "batch_size=True must be a whole number"),
        ([1, 2], {"batch_size": "4"}, "batch_size='4' must be a whole number"),
        ([1, 2], {"batch_size": 2.0}, "batch_size=2.0 must be a whole number"),
        ([1, 2], {"num_workers": -1}, "num_workers=-1 must be at least 0. Write for example"),
        ([1, 2], {"num_workers": None}, "num_workers=None must be a whole number"),
        ([1, 2], {"seed": None}, "seed=None must be a whole number"),
        ([1, 2], {"seed": "7"}, "seed='7' must be a whole number"),
        ([1, 2], {"shuffle": None}, "shuffle=None must be True or False"),
        ([1, 2], {"shuffle": "no"}, "shuffle='no' must be True or False"),
        ([1, 2], {"drop_last": 1}, "drop_last=1 must be True or False"),
    ],
)
def test_what_has_no_exact_position_is_refused(dataset, settings, message):
    """
    Better before training than wrong after a resume.
    """
    with pytest.raises(ConfigError, match=message):
        elastic_loader(dataset, **{"batch_size": 1} | settings)


@pytest.mark.parametrize("settings", [{"sampler": None, "batch_sampler": None}, {"batch_size": np.int64(2)}])
def test_what_a_data_loader_takes_as_left_out_is_no_error(settings):
    """
    Programs pass their arguments on, and sizes come from numpy too.
    """
    assert len(elastic_loader([1, 2, 3, 4], **{"batch_size": 2} | settings)) == 2


class Collect(LightningModule):
    """Trains on nothing and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen = []

    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)

    def predict_step(self, batch, batch_idx):
        return batch


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **settings)


def test_lightning_trains_on_it_as_it_is(reference):
    """
    Under DDP, where Lightning replaces samplers, it keeps this one and tells it the epochs.
    """
    model = Collect()
    loader = elastic_loader(Augmented(), batch_size=4, seed=3, collate_fn=masked)

    with warnings.catch_warnings(), patch.dict(os.environ):  # it announces the group in the environment
        warnings.simplefilter("ignore")  # lightning's advice on workers, and torch's on an unused DDP
        fit = trainer(strategy="ddp", devices=1, max_epochs=3)
        try:
            fit.fit(model, loader)
        finally:
            torch.distributed.destroy_process_group()

    assert torch.cat(model.seen).equal(torch.cat(reference))
    assert isinstance(fit.train_dataloader.sampler, ElasticSampler)


def test_lightning_can_build_it_anew(reference):
    """
    For predictions Lightning takes a loader apart and makes another one from its attributes.
    """
    loader = elastic_loader(Augmented(), batch_size=4, seed=3, collate_fn=masked)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = trainer(devices=1).predict(Collect(), loader)

    assert torch.cat(batches).equal(reference[0])


def test_accelerate_prepares_it(reference):
    """
    A prepared loader yields the same, and the epoch set on it reaches the samples.
    """
    loader = Accelerator(cpu=True).prepare(elastic_loader(Augmented(), batch_size=4, seed=3, collate_fn=masked))

    for expected in reference:  # it counts the epochs itself
        assert torch.cat(list(loader)).equal(expected)


def test_accelerates_processes_share_it(reference):
    """
    Prepared for two processes and bound for that, both together see what one process sees.
    """
    Accelerator(cpu=True)
    shares = []
    for rank in range(2):
        loader = elastic_loader(Augmented(), batch_size=3, seed=3)
        loader.sampler.bind(num_replicas=1, rank=0, multiple_of=6)
        shares.append(list(prepare_data_loader(loader, num_processes=2, process_index=rank)))

    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert torch.cat(together).equal(reference[0][:, :4])
