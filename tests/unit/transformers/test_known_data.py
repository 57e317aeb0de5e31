"""Data sets and a collate function of Hugging Face, whose batches a resume may pass over or has to fetch again."""

from __future__ import annotations

import warnings

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import default_data_collator

from spot_plugins.data import LoaderPosition

ROWS = Dataset.from_dict({"label": list(range(12))})


def resume(loader):
    """Bring *loader* after three batches. Return the warnings, and the labels of the batches that are left."""
    before = LoaderPosition(loader, 1)
    before.begin_epoch(0)
    position = LoaderPosition(loader, 1)
    position.load_state_dict(before.state_dict(3))
    position.begin_epoch(0)
    iterator = iter(loader)
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        position.fast_forward(iterator)
    left = [batch["label" if "label" in batch else "labels"].tolist() for batch in iterator]
    return [str(each.message) for each in met], left


@pytest.mark.parametrize("data", [ROWS, ROWS.with_format("torch"), ROWS.select(range(12)).with_format("numpy")])
@pytest.mark.parametrize("collate_fn", [None, default_data_collator])
def test_a_data_set_without_a_function_of_the_program_is_passed_over(data, collate_fn):
    """Whatever its format. Nothing is said."""
    assert resume(DataLoader(data, batch_size=3, collate_fn=collate_fn)) == ([], [[9, 10, 11]])


def test_a_transform_may_draw_random_numbers():
    """So the batches are fetched again."""
    told, left = resume(DataLoader(ROWS.with_transform(lambda rows: rows), batch_size=3))

    assert ["fetching 3 batches again" in line for line in told] == [True]
    assert left == [[9, 10, 11]]


def test_a_stream_with_a_shuffle_buffer_is_fetched_again_and_told_why():
    """Its state lacks the content of the buffer."""
    stream = ROWS.to_iterable_dataset().shuffle(seed=1, buffer_size=4)

    (told,), left = resume(StatefulDataLoader(stream, batch_size=3))

    advice = "The state of a data set with a shuffle buffer lacks the content of the buffer. A torchdata"
    assert f"in the training data. {advice}" in told
    assert len(left) == 1
