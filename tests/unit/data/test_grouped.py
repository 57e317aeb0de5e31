"""Samples of similar lengths come in one step, on any number of replicas, and each sample once."""

from __future__ import annotations

import pytest

from spot_plugins.data import ElasticSampler, GroupedByLength
from spot_plugins.errors import ConfigError

LENGTHS = [index * 37 % 101 for index in range(100)]
PER_STEP = 6


def sampler(rank=0, world=1, lengths=LENGTHS, per_step=PER_STEP):
    made = ElasticSampler(len(lengths), seed=3, num_replicas=world, rank=rank)
    made.grouped = GroupedByLength(lengths, per_step)
    return made


def test_each_sample_comes_once():
    """In another order in each epoch."""
    one = sampler()
    first = list(one)
    one.set_epoch(1)

    assert sorted(first) == list(range(100))
    assert sorted(one) == list(range(100))
    assert first != list(one)


def test_a_step_has_samples_of_similar_lengths_and_the_longest_comes_first():
    """A piece of 24 samples is sorted."""
    order = [LENGTHS[index] for index in sampler()]

    assert order[0] == max(LENGTHS)
    # The longest has changed places with the first of the first piece, so at most two pieces are not sorted.
    sorted_pieces = [order[at : at + 24] == sorted(order[at : at + 24], reverse=True) for at in range(0, 100, 24)]
    assert sum(sorted_pieces) >= len(sorted_pieces) - 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_replicas_continues_the_order(world):
    """After 40 samples on one replica. The samples of a step stay together."""
    whole = list(sampler())
    ranks = [sampler(rank, world) for rank in range(world)]
    for each in ranks:
        each.load_state_dict({**sampler().state_dict(), "consumed": 40})

    left = [index for turn in zip(*ranks, strict=True) for index in turn]

    assert left == whole[40:]


@pytest.mark.parametrize("other", [sampler(lengths=[1] * 100), sampler(per_step=8), ElasticSampler(100, seed=3)])
def test_a_position_in_another_order_is_refused(other):
    """Other lengths, another step, and no groups."""
    with pytest.raises(ConfigError, match=r"grouped=length-.* differs from grouped="):
        sampler().load_state_dict(other.state_dict())


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_samples(count):
    """Fewer than a step takes."""
    assert sorted(sampler(lengths=[1] * count)) == list(range(count))
