"""The order of samples, for any number of replicas and after any interruption."""

import json
from itertools import chain, zip_longest

import pytest
import torch.distributed
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from spot_plugins.data import ElasticSampler, LoaderPosition, elastic_loader
from spot_plugins.errors import ConfigError

sizes = st.integers(0, 40)
worlds = st.integers(1, 5)
seeds = st.integers(-(2**63), 2**64)


def reset_accelerate():
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.fixture(autouse=True)
def _no_accelerator_of_another_test():
    reset_accelerate()


def global_order(length, seed, epoch, shuffle=True):
    sampler = ElasticSampler(length, seed=seed, shuffle=shuffle)
    sampler.set_epoch(epoch)
    return list(sampler)


def dealt(world, *, length, seed, epoch, consumed, shuffle=True, drop_last=False):
    """The samples of all replicas, put back together in global order; each must get as many as the others."""
    shares = []
    for rank in range(world):
        sampler = ElasticSampler(length, seed=seed, shuffle=shuffle, drop_last=drop_last, num_replicas=world, rank=rank)
        sampler.load_state_dict({**sampler.state_dict(), "epoch": epoch, "consumed": consumed})
        shares.append(list(sampler))
    assert len({len(share) for share in shares}) == 1
    return list(chain.from_iterable(zip(*shares, strict=True)))


@given(length=sizes, world=worlds, seed=seeds, epoch=st.integers(0, 5), shuffle=st.booleans())
def test_all_replicas_together_see_every_sample_once_and_then_padding(length, world, seed, epoch, shuffle):
    """
    The replicas' shares, put together, are the global order of the epoch, padded from its beginning.
    """
    order = global_order(length, seed, epoch, shuffle)

    together = dealt(world, length=length, seed=seed, epoch=epoch, consumed=0, shuffle=shuffle)

    assert sorted(order) == list(range(length))
    assert together[:length] == order
    assert len(together) - length < world
    assert together[length:] == (order * world)[: len(together) - length]


@given(length=sizes, world=worlds, seed=seeds)
def test_with_drop_last_only_the_end_of_the_order_is_missing(length, world, seed):
    """
    Dropping loses fewer samples than there are replicas, and those are the last of the order.
    """
    together = dealt(world, length=length, seed=seed, epoch=0, consumed=0, drop_last=True)

    assert together == global_order(length, seed, 0)[: length - length % world]


@given(length=sizes, world=worlds, seed=seeds, drop_last=st.booleans())
def test_resumed_at_any_position_the_rest_is_the_tail_of_the_uninterrupted_epoch(length, world, seed, drop_last):
    """
    Whatever the position, the samples after a resume are those that an uninterrupted epoch would have had next.
    """
    same = {"length": length, "seed": seed, "epoch": 3, "drop_last": drop_last}
    uninterrupted = dealt(world, consumed=0, **same)

    for consumed in range(0, length, world):
        assert dealt(world, consumed=consumed, **same) == uninterrupted[consumed:]
    assert dealt(world, consumed=length, **same) == []


@given(length=sizes, seed=seeds, lives=st.lists(st.tuples(worlds, st.integers(1, 4)), max_size=6), last=worlds)
def test_every_sample_is_seen_once_however_the_number_of_replicas_changes(length, seed, lives, last):
    """
    Over any chain of process lives with any numbers of replicas the epoch is the same, up to its padding.
    """
    seen = []
    for world, steps in lives:
        rest = dealt(world, length=length, seed=seed, epoch=0, consumed=min(len(seen), length))
        seen += rest[: world * steps]
    seen += dealt(last, length=length, seed=seed, epoch=0, consumed=min(len(seen), length))

    assert seen[:length] == global_order(length, seed, 0)


def test_seed_and_epoch_are_not_added_up():
    """
    Neighbouring seeds do not share epochs, as they do with torch's DistributedSampler.
    """
    orders = {tuple(global_order(30, seed, epoch)) for seed in range(4) for epoch in range(4)}

    assert len(orders) == 16


def test_the_order_of_a_seed_and_epoch_never_changes():
    """
    A checkpoint of an older version counts in this very order.
    """
    assert global_order(10, seed=7, epoch=2) == [6, 5, 0, 1, 2, 9, 7, 3, 4, 8]
    assert global_order(4, seed=7, epoch=2, shuffle=False) == [0, 1, 2, 3]


def test_iterating_is_not_consuming():
    """
    Workers fetch ahead: what was drawn from the sampler says nothing about what was trained on.
    """
    sampler = ElasticSampler(10)
    sampler.load_state_dict({**sampler.state_dict(), "consumed": 4})
    first = list(sampler)

    assert sampler.state_dict()["consumed"] == 4
    assert list(sampler) == first


def test_setting_the_present_epoch_again_keeps_the_position_and_another_one_begins_at_its_beginning():
    """
    Lightning sets the epoch of a resumed loader once more.
    """
    sampler = ElasticSampler(10)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": 2, "consumed": 4})

    sampler.set_epoch(2)
    assert sampler.consumed == 4
    sampler.set_epoch(3)
    assert sampler.consumed == 0
    assert len(list(sampler)) == 10


def test_its_length_is_that_of_the_full_epoch_wherever_it_stands():
    """
    Lightning compares the length with a batch counter that goes on from before the interruption.
    """
    sampler = ElasticSampler(10, num_replicas=3, rank=2)
    sampler.load_state_dict({**sampler.state_dict(), "consumed": 6})

    assert (len(sampler), sampler.num_samples, sampler.total_size) == (4, 4, 12)
    assert len(list(sampler)) == 2


def test_the_world_is_asked_for_when_it_is_needed():
    """
    Lightning builds loaders before its process group exists; the sampler learns of it later.
    """
    sampler = ElasticSampler(10, shuffle=False)
    alone = list(sampler)
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        second_of_two = list(sampler)
        assert (sampler.num_replicas, sampler.rank, len(sampler)) == (2, 1, 5)
    finally:
        torch.distributed.destroy_process_group()

    assert isinstance(sampler, DistributedSampler)
    assert (alone, second_of_two) == (list(range(10)), [1, 3, 5, 7, 9])


@pytest.mark.parametrize("settings", [{}, {"split_batches": True}, {"dispatch_batches": False}])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length", [80, 83])
def test_its_length_under_accelerate_is_that_of_a_plain_loader(length, drop_last, settings, monkeypatch):
    """
    Scripts compute their schedule from the length before prepare, which is global, or after it, which is per rank.
    """
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        lengths = []
        for make in (elastic_loader, DataLoader):
            reset_accelerate()
            accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
            assert accelerator.num_processes == 2
            loader = make(range(length), batch_size=4, drop_last=drop_last)
            before = len(loader)
            prepared = accelerator.prepare(loader)
            after = len(prepared)
            LoaderPosition(prepared, 2)
            lengths.append((before, after, len(prepared)))
        reset_accelerate()
        alone = len(elastic_loader(range(80), batch_size=4))
    finally:
        reset_accelerate()
        torch.distributed.destroy_process_group()

    assert lengths[0] == lengths[1]
    assert alone == 10  # a loop of one's own on two ranks, without an Accelerator


def test_the_state_is_plain_json():
    """
    The position of a loader is part of the manifest.
    """
    sampler = ElasticSampler(["a", "b", "c"], seed=5)
    sampler.set_epoch(4)

    assert json.loads(json.dumps(sampler.state_dict())) == {
        "seed": 5,
        "shuffle": True,
        "num_samples": 3,
        "epoch": 4,
        "consumed": 0,
    }


@pytest.mark.parametrize(("name", "there"), [("seed", 6), ("shuffle", False), ("num_samples", 11)])
def test_a_position_in_another_order_is_refused(name, there):
    """
    With other data or settings the same number would mean other samples. The sampler stays as it was.
    """
    sampler = ElasticSampler(10, seed=5)
    state = {**sampler.state_dict(), "epoch": 1, "consumed": 4, name: there}

    with pytest.raises(
        ConfigError, match=f"{name}=.*{name}={there} in the checkpoint, so the position saved there means other"
    ):
        sampler.load_state_dict(state)

    assert (sampler.epoch, sampler.consumed) == (0, 0)


@pytest.mark.parametrize("replica", [{"num_replicas": 2}, {"rank": 0}, {"num_replicas": 2, "rank": 2}])
def test_a_replica_that_cannot_be_is_refused(replica):
    """
    Half of an answer, or a rank outside the world, would deal samples out wrongly.
    """
    with pytest.raises(ConfigError, match=r"give both of them, or neither|must be at least 0 and below num_replicas=2"):
        ElasticSampler(10, **replica)


def accelerate_steps(world, batch_size, *, length, consumed, split_batches, drop_last):
    """The samples of each global step, when Accelerate deals out the batches."""
    batch_of_step = batch_size if split_batches else batch_size * world
    shards = []
    for rank in range(world):
        sampler = ElasticSampler(length, seed=1, drop_last=drop_last)
        sampler.bind(num_replicas=1, rank=0, multiple_of=batch_of_step)
        sampler.load_state_dict({**sampler.state_dict(), "consumed": consumed})
        batches = BatchSampler(sampler, batch_size, drop_last)
        shards.append(BatchSamplerShard(batches, world, rank, split_batches=split_batches))
    if consumed == 0:
        assert {len(shard) for shard in shards} == {len(list(shards[0]))}
    return [list(chain.from_iterable(step)) for step in zip_longest(*shards, fillvalue=[None])]


@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_accelerates_processes_take_the_next_samples_of_the_global_order(world, drop_last, split_batches):
    """
    At every step, fresh or resumed at any step, all processes together take the next samples of the order.
    """
    batch_size = 6 if split_batches else 2
    step_size = batch_size if split_batches else batch_size * world
    for length in range(1, 4 * step_size):
        order = global_order(length, 1, 0)
        padded = (order * (step_size + 1))[: -(-length // step_size) * step_size]
        expected = [padded[start : start + step_size] for start in range(0, len(padded), step_size)]
        if drop_last:
            expected = [order[at : at + step_size] for at in range(0, length - step_size + 1, step_size)]
        for step in range(len(expected) + 1):
            steps = accelerate_steps(
                world,
                batch_size,
                length=length,
                consumed=min(step * step_size, length),
                split_batches=split_batches,
                drop_last=drop_last,
            )
            assert steps == expected[step:]


def test_without_being_told_accelerate_pads_a_resumed_epoch_with_the_wrong_samples():
    """
    Why bind() has multiple_of: the real BatchSamplerShard fills up from where this iteration began.
    """
    order = global_order(10, 1, 0)

    def last_step(multiple_of):
        steps = []
        for rank in range(2):
            sampler = ElasticSampler(10, seed=1)
            sampler.bind(num_replicas=1, rank=0, multiple_of=multiple_of)
            sampler.load_state_dict({**sampler.state_dict(), "consumed": 4})
            steps.append(list(BatchSamplerShard(BatchSampler(sampler, 2, False), 2, rank))[-1])
        return steps

    assert last_step(multiple_of=1) == [order[8:10], order[4:6]]
    assert last_step(multiple_of=4) == [order[8:10], order[0:2]]
