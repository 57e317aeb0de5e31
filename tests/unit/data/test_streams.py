"""Positions in streams, whose samples come one after another: what keeps their order, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from streams import Stream
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.data import LoaderPosition
from spot_plugins.data.values import bytes_of
from spot_plugins.errors import ConfigError


def plain(**settings):
    return DataLoader(Stream(12), **({"batch_size": 2} | settings))


def dealt_out(**settings):
    """Return a loader whose batches rank 0 deals out, as Accelerate makes it of a stream."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True).prepare(plain(**settings))


def move(before, after):
    """Load the position after the first batch of one loader into another. Each is a loader and a number of ranks."""
    position = LoaderPosition(*before)
    position.begin_epoch(0)
    other = LoaderPosition(*after)
    other.load_state_dict(position.state_dict(1))
    return other


WORKERS = {"num_workers": 2}
OTHERS = {
    "workers": (plain(), 1, plain(**WORKERS), 1, "num_workers=2 differs from num_workers=0 in the checkpoint, and a s"),
    "ranks that read": (plain(), 2, plain(), 1, "world_size=1 differs from world_size=2 in the checkpoint, and a str"),
    "batches of workers": (
        plain(**WORKERS),
        1,
        plain(batch_size=4, **WORKERS),
        1,
        "batch_size=4 differs from batch_size=2 in the checkpoint, and a stream can only continue with the same number",
    ),
}


@pytest.mark.parametrize(("before", "ranks_before", "after", "ranks", "words"), OTHERS.values(), ids=OTHERS)
def test_a_stream_that_is_divided_in_another_way_is_refused(before, ranks_before, after, ranks, words):
    """Its samples would come in another order."""
    with pytest.raises(ConfigError, match=words):
        move((before, ranks_before), (after, ranks))


@pytest.mark.parametrize("settings", [{}, WORKERS])
def test_a_stream_that_one_rank_reads_continues_on_others(settings):
    """The batches of two ranks are those of one. The end of a pass is not, and a warning says so."""
    with pytest.warns(UserWarning, match="the stream is dealt out to 1 ranks now, and to 2 in the checkpoint"):
        position = move((dealt_out(**settings), 2), (dealt_out(**settings), 1))

    assert position.num_done == 2


def test_other_batches_without_workers():
    """The samples stay in their order, so only their number counts."""
    assert move((plain(batch_size=4), 1), (plain(), 1)).num_done == 2


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_workers_without_an_order_are_refused(loader):
    """They would be asked for batches by the time that each takes."""
    with pytest.raises(ConfigError, match="in_order=False yields batches in no fixed order, so no position is exact"):
        LoaderPosition(loader(Stream(4), in_order=False, num_workers=1), 1)

    LoaderPosition(loader(Stream(4), in_order=False), 1)


def rows():
    return datasets.Dataset.from_dict({"x": range(9)}).to_iterable_dataset(num_shards=3)


def mixed(seed):
    return datasets.interleave_datasets([rows(), rows()], probabilities=[0.5, 0.5], seed=seed)


SHUFFLED = {
    "in order": (rows, True),
    "a seed": (lambda: rows().shuffle(seed=3), True),
    "a generator with a seed": (lambda: rows().shuffle(generator=np.random.default_rng(7)), True),
    "an old generator": (lambda: rows().shuffle(generator=np.random.Generator(np.random.MT19937(1))), True),
    "no seed": (lambda: rows().shuffle(), False),
    "no seed, mapped": (lambda: rows().shuffle(buffer_size=2).map(dict).take(4), False),
    "mixed": (lambda: mixed(1), True),
    "mixed without a seed": (lambda: mixed(None), False),
}


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize(("make", "is_fixed"), SHUFFLED.values(), ids=SHUFFLED)
def test_a_stream_that_is_shuffled_without_a_seed_is_refused(make, is_fixed, loader):
    """No later process would find its samples in the same order."""
    if is_fixed:
        LoaderPosition(loader(make()), 1)
        return

    with pytest.raises(ConfigError, match="a stream of Hugging Face that is shuffled without a seed, so that each"):
        LoaderPosition(loader(make()), 1)


def test_bytes_of_values():
    """Equal for equal values of any kind that a batch may have."""
    batch = {
        "x": torch.ones(2, 3, dtype=torch.bfloat16).T,
        "names": ["a", None],
        "y": np.arange(2),
        "z": torch.ones(()),
    }

    assert bytes_of(batch) == bytes_of({**batch, "y": torch.arange(2).numpy()})
    assert bytes_of(batch) != bytes_of({**batch, "names": ["b", None]})
    assert bytes_of(batch) != bytes_of({**batch, "z": torch.zeros(())})
    assert bytes_of({**batch, "object": object()}) is None
    assert bytes_of(torch.eye(2).to_sparse()) is None
