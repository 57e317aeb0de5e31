"""Interrupted and resumed with other batches or over a stream, an Accelerate training sees the right samples."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from hearing import until
from streams import Buffered, Kept
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError, Preempted

pytestmark = [
    pytest.mark.sampled,
    pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning"),
    # torch says so if a process continues at the end of an epoch, where the optimizer has not stepped yet
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]

SAMPLES = 40


def train(folder, make, *, at=None, **config):
    """Train for three epochs, with a notice at batch *at* of this process. Return the batches and the learning rate."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config))
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen = []
    with suppress(Preempted), SpotHook(accelerator, f"file://{folder}/run", every_steps=3) as spot:
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, make(), scheduler)
        spot.resume()
        for epoch in spot.epochs(3):
            for batch in spot.batches(loader):
                if len(seen) == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                    until(lambda: spot._session.notice is not None, "the notice was taken")
                seen.append((epoch, batch.flatten().int().tolist()))
                loss = model(batch.float().view(-1, 1) / SAMPLES).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                spot.after_step()
            scheduler.step()
    return seen, scheduler.get_last_lr()


def samples(*lives):
    return [(epoch, sample) for seen in lives for epoch, batch in seen for sample in batch]


@pytest.mark.parametrize(("first", "then", "at"), [(5, 10, 9), (10, 5, 5), (5, 10, 10), (5, 3, 9), (5, 40, 12)])
def test_an_elastic_loader_goes_on_with_the_next_sample(first, then, at, tmp_path):
    """The position is the number of samples, and every epoch and its end come."""
    control, lr = train(tmp_path / "control", lambda: elastic_loader(range(SAMPLES), batch_size=5))

    before, _ = train(tmp_path, lambda: elastic_loader(range(SAMPLES), batch_size=first), at=at)
    after, lr_after = train(tmp_path, lambda: elastic_loader(range(SAMPLES), batch_size=then))

    padded = samples(before, after)
    assert [pair for number, pair in enumerate(padded) if pair not in padded[:number]] == samples(control)
    assert len(padded) - len(samples(control)) < 3 * then
    assert lr_after == lr


def test_a_plain_loader_goes_on_with_the_next_sample_where_the_batches_divide(tmp_path):
    """Its order does not depend on the batch size."""
    control, _ = train(tmp_path / "control", lambda: DataLoader(range(SAMPLES), batch_size=5, shuffle=True))

    before, _ = train(tmp_path, lambda: DataLoader(range(SAMPLES), batch_size=5, shuffle=True), at=9)
    after, _ = train(tmp_path, lambda: DataLoader(range(SAMPLES), batch_size=10, shuffle=True))

    assert samples(before, after) == samples(control)


def test_a_plain_loader_says_which_samples_come_twice(tmp_path):
    """Half of a batch cannot be fetched."""
    before, _ = train(tmp_path, lambda: DataLoader(range(SAMPLES), batch_size=5, shuffle=True), at=10)

    with pytest.warns(UserWarning, match="5 samples of this epoch are trained on twice, because 15 were trained on"):
        after, _ = train(tmp_path, lambda: DataLoader(range(SAMPLES), batch_size=10, shuffle=True))

    assert set(samples(before, after)) == {(epoch, sample) for epoch in range(3) for sample in range(SAMPLES)}


def test_a_stateful_loader_of_another_batch_size_is_refused(tmp_path):
    """Its state counts batches."""
    train(tmp_path, lambda: StatefulDataLoader(range(SAMPLES), batch_size=5), at=10, use_stateful_dataloader=True)

    with pytest.raises(ConfigError, match="batch_size over 1 ranks=10 differs"):
        train(tmp_path, lambda: StatefulDataLoader(range(SAMPLES), batch_size=10), use_stateful_dataloader=True)


@pytest.mark.parametrize("at", [3, 7, 10])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_epochs_after_a_resumed_stream_begin_at_its_beginning(workers, at, tmp_path):
    """An uninterrupted training never restores its data set, so it must not stay restored."""

    def make():
        return StatefulDataLoader(Kept(SAMPLES), batch_size=5, num_workers=workers, persistent_workers=workers > 0)

    before, _ = train(tmp_path, make, at=at, use_stateful_dataloader=True)
    after, _ = train(tmp_path, make, use_stateful_dataloader=True)

    assert samples(before, after) == [(epoch, sample) for epoch in range(3) for sample in range(SAMPLES)]


@pytest.mark.parametrize("batch_size", [5, 20])
def test_a_stream_whose_state_is_whole_is_not_named(batch_size, tmp_path):
    """Also if an epoch has two batches. Warnings are errors in these tests."""
    train(tmp_path, lambda: StatefulDataLoader(Kept(SAMPLES), batch_size=batch_size), use_stateful_dataloader=True)


def test_a_stream_whose_state_lacks_its_buffer_is_named_at_once(tmp_path):
    """In the first process, before anything is lost."""
    with pytest.warns(UserWarning, match=r"Buffered\.state_dict\(\) does not hold .* Use a plain torch DataLoader"):
        train(tmp_path, lambda: StatefulDataLoader(Buffered(SAMPLES), batch_size=5), use_stateful_dataloader=True)


def test_a_stream_in_a_plain_loader_is_exact(tmp_path):
    """Its batches are counted."""
    control, _ = train(tmp_path / "control", lambda: DataLoader(Buffered(SAMPLES), batch_size=5))

    before, _ = train(tmp_path, lambda: DataLoader(Buffered(SAMPLES), batch_size=5), at=11)
    after, _ = train(tmp_path, lambda: DataLoader(Buffered(SAMPLES), batch_size=5))

    assert before + after == control
