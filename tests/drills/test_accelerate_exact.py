"""Promise 4 under Accelerate: interrupted and resumed is bit for bit the training that was never interrupted."""

from __future__ import annotations

import os
import signal
from functools import partial

import launching
import pytest
from exactness import References, assert_same_fingerprints, assert_same_training, resumed_steps, what_was_seen
from hearing import until
from launching import exit_codes, launch_ranks, launcher, start

pytestmark = pytest.mark.sampled

train = partial(launching.train, "accelerate_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


MID_EPOCH = ["batch", 13]
LAST_BATCH = ["batch", 16]
PAIR = {"ranks": 2, "samples": 83}  # 9 batches per rank and epoch, the last one filled up

# settings, signal, where it comes, the step behind which the training goes on
DRILLS = {
    "mid-epoch": ({}, "SIGTERM", MID_EPOCH, 13),
    "mid-epoch, killed": ({}, "SIGKILL", MID_EPOCH, 10),
    "before the first save, killed": ({}, "SIGKILL", ["batch", 3], None),
    "last batch of an epoch": ({}, "SIGTERM", LAST_BATCH, 16),
    "behind an epoch": ({}, "SIGTERM", ["epoch_end", 1], 17),
    "behind an epoch, killed": ({"every_steps": 8}, "SIGKILL", ["epoch_end", 1], 16),
    "in validation": ({}, "SIGTERM", ["val", 16, 1], 16),
    "in validation, killed": ({"every_steps": 8}, "SIGKILL", ["val", 16, 2], 16),
    "in validation in mid-epoch": ({"validate": "body"}, "SIGTERM", ["val", 12, 1], 12),
    "in validation in mid-epoch, killed": ({"validate": "body", "every_steps": 4}, "SIGKILL", ["val", 12, 3], 12),
    "in validation at the head of the body": ({"validate": "head"}, "SIGTERM", ["val", 12, 1], 12),
    "in validation before the first step": ({"validate": "head"}, "SIGTERM", ["val", 0, 1], 0),
    "in validation at the head of an epoch": ({"validate": "head"}, "SIGTERM", ["val", 16, 1], 16),
    "in validation at the head, killed": ({"validate": "head", "every_steps": 4}, "SIGKILL", ["val", 12, 3], 12),
    "workers": ({"workers": 2}, "SIGTERM", MID_EPOCH, 13),
    "persistent workers, in validation": ({"workers": 2, "persistent": 1}, "SIGTERM", ["val", 16, 1], 16),
    "persistent workers, killed": ({"workers": 2, "persistent": 1}, "SIGKILL", MID_EPOCH, 10),
    "accumulation, first of two": ({"accumulate": 2}, "SIGTERM", ["batch", 13], 7),
    "accumulation, second of two": ({"accumulate": 2}, "SIGTERM", ["batch", 14], 7),
    "accumulation, odd end of an epoch": ({"accumulate": 3}, "SIGTERM", LAST_BATCH, 6),
    "accumulation, killed": ({"accumulate": 3, "every_steps": 2}, "SIGKILL", MID_EPOCH, 4),
    "overflows": ({"scaler": 1}, "SIGTERM", MID_EPOCH, 13),
    "two loaders in pairs": ({"other": "in pairs"}, "SIGTERM", MID_EPOCH, 13),
    "two loaders in pairs, last batch": ({"other": "in pairs"}, "SIGTERM", LAST_BATCH, 16),
    "second loader at times": ({"other": "at times"}, "SIGTERM", MID_EPOCH, 13),
    "one loader behind the other": ({"other": "behind"}, "SIGTERM", ["batch", 30], 30),
    "plain loader": ({"loader": "plain"}, "SIGTERM", MID_EPOCH, 13),
    "plain loader, last batch": ({"loader": "plain"}, "SIGTERM", LAST_BATCH, 16),
    "plain loader, workers, killed": ({"loader": "plain", "workers": 2}, "SIGKILL", MID_EPOCH, 10),
    "stateful loader": ({"loader": "stateful"}, "SIGTERM", MID_EPOCH, 13),
    "stateful loader, last batch": ({"loader": "stateful"}, "SIGTERM", LAST_BATCH, 16),
    "two ranks": (PAIR, "SIGTERM", MID_EPOCH, 13),
    "two ranks, killed": (PAIR, "SIGKILL", MID_EPOCH, 10),
    "two ranks, last batch, workers": ({**PAIR, "workers": 2}, "SIGTERM", ["batch", 18], 18),
    "two ranks, in validation": (PAIR, "SIGTERM", ["val", 18, 1], 18),
    "two ranks, accumulation": ({**PAIR, "accumulate": 2}, "SIGTERM", ["batch", 12], 7),
    "two ranks, plain loader": ({**PAIR, "loader": "plain"}, "SIGTERM", MID_EPOCH, 13),
    "two ranks, stateful loader": ({**PAIR, "loader": "stateful"}, "SIGTERM", MID_EPOCH, 13),
}


@pytest.mark.parametrize(("settings", "signal_name", "at", "step"), DRILLS.values(), ids=DRILLS)
def test_resumed_equals_uninterrupted(settings, signal_name, at, step, references, tmp_path):
    """
    Whatever signal comes wherever: weights, optimizer, schedulers, streams, order of samples and every loss are
    those of a training that was never interrupted.
    """
    reference = references(settings)

    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL
    train(tmp_path, {**settings, "signal": signal_name, "at": at}, expect=code)
    train(tmp_path, settings, expect=0)

    ranks = settings.get("ranks", 1)
    for rank in range(ranks):
        assert resumed_steps(tmp_path, rank) == ([] if step is None else [step])
    # a pause behind after_step() is not come by again
    left_out = [("val", step // 8, step)] if settings.get("validate") == "body" else []
    assert_same_training(tmp_path, reference, ranks, left_out)
    assert_same_fingerprints(tmp_path, reference, ranks)


def test_a_training_that_is_prolonged_equals_one_that_was_planned_so_long(references, tmp_path):
    """
    Its end is saved behind the last epoch: no epoch is repeated, and the random streams go on from there.
    """
    train(tmp_path, {"epochs": 2}, expect=0)
    train(tmp_path, {}, expect=0)

    assert_same_training(tmp_path, references({}), ranks=1)


def test_an_elastic_loader_for_validation_is_dealt_out_once(references):
    """
    Accelerate deals out batches of the global order; a sampler that dealt it out as well would hide samples.
    """
    seen = [what_was_seen(references(PAIR), rank) for rank in range(2)]
    samples = [sample for by_batch in seen for sample in by_batch["val", 0, 9][0]]
    assert sorted(samples) == list(range(20))


def test_leaving_does_not_wait_for_workers(tmp_path):
    """
    torch would wait ten seconds for each that is busy, and a grace may be five.
    """
    settings = {"workers": 2, "stuck": 1, "signal": "from outside", "at": ["batch", 8]}
    [process] = launch_ranks("accelerate_train", tmp_path, settings)
    until((tmp_path / "ready-0.jsonl").exists, "it is ready")

    os.kill(process.pid, signal.SIGTERM)

    assert exit_codes([process], timeout=4.5) == [143]


def test_a_sigterm_to_the_launcher_is_one_to_all_and_to_their_workers(references, tmp_path):
    """
    It signals whole process groups: loader workers too, and none of them may take the save with it.
    """
    settings = {**PAIR, "loader": "plain", "workers": 2, "persistent": 1}
    reference = references(settings)

    process = start(launcher("accelerate launch"), tmp_path, {**settings, "signal": "from outside", "at": MID_EPOCH})
    try:
        until(lambda: all((tmp_path / f"ready-{rank}.jsonl").exists() for rank in range(2)), "both are ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) != 0
    finally:
        process.kill()
    train(tmp_path, settings, expect=0)

    assert [resumed_steps(tmp_path, rank) for rank in range(2)] == [[13], [13]]
    assert_same_training(tmp_path, reference, ranks=2)
