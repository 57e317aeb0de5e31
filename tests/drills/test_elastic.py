"""Trainings that come back on another number of ranks, or sharded in another way, under all hosts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby, product

import pytest
import torch
from exactness import samples_by_step
from launching import exit_codes, launch, train

from spot_plugins.data import ElasticSampler

EPOCHS = 3


def train_in(folder, settings, lives):
    """Train in *lives*: on how many ranks each, and in which step it is preempted; None is not at all."""
    for ranks, stop_in in lives:
        life = {**settings, "ranks": ranks, "stop_in": stop_in}
        train("elastic_train", folder, life, expect=0 if stop_in is None else 143)
    return [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]


def orders(samples):
    sampler = ElasticSampler(samples, seed=7)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        yield epoch, list(sampler)


pytestmark = pytest.mark.sampled

HOSTS = ["lightning", "accelerate", *(pytest.param(host, marks=pytest.mark.soak) for host in ("bare", "fabric"))]
WRAPPERS = ["ddp", "fsdp1", "fsdp2"]
# 4 ranks, then 3, 4 again, 1, and 2 to the end; each but the last is preempted in mid-epoch
LIVES = [(4, 4), (3, 9), (4, 14), (1, 30), (2, None)]


@pytest.mark.parametrize(("samples", "drop_last"), [(48, False), (53, False), (53, True)], ids=str)
@pytest.mark.parametrize("host", HOSTS)
def test_every_sample_is_seen_once_per_epoch_on_any_sequence_of_ranks(host, samples, drop_last, tmp_path):
    """
    4, 3, 4, 1 and 2 ranks: over all of them an epoch is the one global order, cut into other batches. Only at its end
    something is added, from its beginning, or left out, to fill the last batches.
    """
    settings = {"host": host, "wrapper": "ddp", "samples": samples, "drop_last": drop_last, "elastic_batch": "scale"}

    trace = train_in(tmp_path / "run", settings, LIVES)

    steps = samples_by_step(trace)
    assert [step for _, step in sorted(steps)] == [*range(1, len(steps) + 1)], "no step twice, none left out"
    for epoch, order in orders(samples):
        seen = [sample for key in sorted(steps) if key[0] == epoch for sample in steps[key][0]]
        position = 0
        for key in sorted(steps):
            if key[0] == epoch:
                taken = steps[key][0]
                expected = (order + order)[position : position + len(taken)]
                assert taken == sorted(expected), f"step {key} is not the next part of the order"
                position += len(taken)
        if drop_last:
            assert len(seen) <= samples
            assert samples - len(seen) < 4 * 2
            assert max(Counter(seen).values()) == 1
        else:
            assert samples <= len(seen) < samples + 4 * 2
            assert set(seen) == set(range(samples))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("host", HOSTS)
def test_the_global_batch_is_kept_where_it_divides(host, wrapper, tmp_path):
    """
    4 ranks, then 2 that accumulate twice as much, 1 that accumulates four times as much, and 4 again: every step is
    made of the same samples as that of 4 ranks left alone, and the loss is the same but for the order of additions.
    """
    settings = {"host": host, "wrapper": wrapper, "samples": 48}

    alone = samples_by_step(train_in(tmp_path / "alone", settings, [(4, None)]))
    changing = samples_by_step(train_in(tmp_path / "changing", settings, [(4, 3), (2, 9), (2, 10), (1, 14), (4, None)]))

    assert changing.keys() == alone.keys()
    for key, (samples, loss) in alone.items():
        assert changing[key][0] == samples, key
        assert changing[key][1] == pytest.approx(loss, abs=2e-5), key
    if host == "lightning":  # it counts batches, of which there are others now
        assert validations(tmp_path / "changing") == validations(tmp_path / "alone")


def validations(folder):
    """Behind which steps there was a validation."""
    return {tuple(json.loads(line)) for line in (folder / "validations.jsonl").read_text().splitlines()}


@pytest.mark.parametrize("host", HOSTS)
def test_it_is_said_when_the_global_batch_cannot_be_kept(host, tmp_path):
    """
    2 ranks, then 3: 2 batches do not divide over them. A warning says what a step is made of now; on 2 ranks again it
    is made of 2 as before.
    """
    settings = {"host": host, "wrapper": "ddp", "samples": 48}

    steps = samples_by_step(train_in(tmp_path / "run", settings, [(2, 3), (3, 6), (2, None)]))

    printed = (tmp_path / "run" / "output-0.txt").read_text()
    assert printed.count("an optimizer step is made of 3 batches now instead of 2") == 1
    assert printed.count("an optimizer step is made of") == 1
    assert [size for size, _ in groupby(len(samples) for samples, _ in steps.values())][:3] == [4, 6, 4]


@pytest.mark.parametrize(
    ("host", "wrapper"),
    [
        *product(["lightning", "accelerate"], ["fsdp1", "fsdp2"]),
        pytest.param("bare", "fsdp1", marks=pytest.mark.soak),
        ("bare", "fsdp2"),
        *(pytest.param("fabric", wrapper, marks=pytest.mark.soak) for wrapper in WRAPPERS),
    ],
)
def test_a_sharded_training_goes_on_bit_for_bit(host, wrapper, tmp_path):
    """
    Two ranks, preempted in mid-epoch by a notice to one of them, and two ranks again: every loss, the weights and the
    optimizer are those of two ranks left alone.
    """
    settings = {"host": host, "wrapper": wrapper, "samples": 48}

    alone = train_in(tmp_path / "alone", settings, [(2, None)])
    resumed = train_in(tmp_path / "resumed", settings, [(2, 17), (2, None)])

    assert sorted(resumed) == sorted(alone)
    finals = [torch.load(tmp_path / name / "final.pt", weights_only=False) for name in ("alone", "resumed")]
    assert str(finals[0]) == str(finals[1])
    assert repr(flat(finals[0])) == repr(flat(finals[1]))


@pytest.mark.parametrize(
    "host", ["accelerate", *(pytest.param(host, marks=pytest.mark.soak) for host in ("lightning", "bare", "fabric"))]
)
def test_ddp_on_three_ranks_goes_on_bit_for_bit(host, tmp_path):
    """
    Three ranks under DDP, preempted and resumed. Each gradient is the sum of three, so its last bits depend on the
    order of additions, which DDP changes after the first backward of a process.
    """
    settings = {"host": host, "samples": 48}

    alone = train_in(tmp_path / "alone", settings, [(3, None)])
    resumed = train_in(tmp_path / "resumed", settings, [(3, 5), (3, None)])

    assert sorted(resumed) == sorted(alone)
    finals = [torch.load(tmp_path / name / "final.pt", weights_only=False) for name in ("alone", "resumed")]
    assert repr(flat(finals[0])) == repr(flat(finals[1]))


@pytest.mark.parametrize("what", ["same", "misfit"])
def test_ddp_gets_its_buckets_back(what, tmp_path):
    """
    The gradients of a resumed process are the same in every bit. What cannot be brought into an order is left alone.
    """
    outputs = [tmp_path / f"output-{rank}.txt" for rank in range(3)]
    ranks = [
        launch("bucket_ranks", (what, rank, str(tmp_path)), environment={}, output=output)
        for rank, output in enumerate(outputs)
    ]
    assert exit_codes(ranks) == [0, 0, 0], [output.read_text()[-3000:] for output in outputs]


@pytest.mark.parametrize("host", ["lightning", "bare", pytest.param("fabric", marks=pytest.mark.soak)])
def test_ranks_that_share_each_sample_go_on_bit_for_bit(host, tmp_path):
    """
    Tensor parallelism: both ranks see every sample, as one replica, and go on with the next.
    """
    settings = {"host": host, "wrapper": "tp", "samples": 48}

    alone = train_in(tmp_path / "alone", settings, [(2, None)])
    resumed = train_in(tmp_path / "resumed", settings, [(2, 30), (2, None)])

    assert sorted(resumed) == sorted(alone)
    for epoch, order in orders(48):
        for rank in range(2):
            assert [sample for e, _, r, seen, _ in alone if (e, r) == (epoch, rank) for sample in seen] == order
    finals = [torch.load(tmp_path / name / "final.pt", weights_only=False) for name in ("alone", "resumed")]
    assert repr(flat(finals[0])) == repr(flat(finals[1]))


def flat(state, path=""):
    """Every tensor in *state*, as its bytes."""
    if isinstance(state, torch.Tensor):
        return [(path, state.dtype, state.reshape(-1).view(torch.uint8).tolist())]
    if isinstance(state, dict):
        return [entry for key in state for entry in flat(state[key], f"{path}/{key}")]
    if isinstance(state, list):
        return [entry for number, item in enumerate(state) for entry in flat(item, f"{path}/{number}")]
    return [(path, state)]


@pytest.mark.parametrize("host", HOSTS)
def test_a_training_moves_between_ways_to_shard(host, tmp_path):
    """
    FSDP2 on 2 ranks, DDP on 1, FSDP1 on 3, DDP on 2: no sample is lost or seen twice, and the losses are those of
    ranks left alone, as long as their number is the same.
    """
    settings = {"host": host, "samples": 48, "elastic_batch": "scale"}
    for wrapper, ranks, stop_in in (("fsdp2", 2, 5), ("ddp", 1, 15), ("fsdp1", 3, 19), ("ddp", 2, None)):
        trace = train_in(tmp_path / "run", {**settings, "wrapper": wrapper}, [(ranks, stop_in)])

    steps = samples_by_step(trace)
    for epoch, _ in orders(48):
        seen = Counter(sample for key, (samples, _) in steps.items() if key[0] == epoch for sample in samples)
        assert set(seen) == set(range(48))
        assert sum(seen.values()) < 48 + 6
    alone = samples_by_step(train_in(tmp_path / "alone", {**settings, "wrapper": "ddp"}, [(2, None)]))
    for key in [(0, step) for step in range(1, 6)]:
        assert steps[key][1] == pytest.approx(alone[key][1], abs=2e-5)
