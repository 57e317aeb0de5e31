"""Promise 4 under Lightning: interrupted and resumed is bit for bit the training that was never interrupted."""

from __future__ import annotations

import signal
from functools import partial

import launching
import pytest
from exactness import References, assert_same_fingerprints, assert_same_training, resumed_steps

pytestmark = pytest.mark.sampled

train = partial(launching.train, "lightning_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


MID_EPOCH = ["batch", 11]
LAST_BATCH = ["batch", 16]

STEPS = {"max_steps": 22, "max_epochs": -1}
EVERY_OTHER = {"check_val_every_n_epoch": 2}
ACROSS = {"check_val_every_n_epoch": None, "val_check_interval": 5}

DRILLS = {
    "mid-epoch": ({}, "SIGTERM", MID_EPOCH),
    "mid-epoch, killed": ({}, "SIGKILL", MID_EPOCH),
    "last batch of an epoch": ({}, "SIGTERM", LAST_BATCH),
    "behind an epoch, killed": ({"every_steps": 8}, "SIGKILL", ["epoch_end", 1]),
    "last batch, no validation": ({"trainer": {"limit_val_batches": 0}}, "SIGTERM", LAST_BATCH),
    "in validation": ({"callbacks": ["swap"]}, "SIGTERM", ["val", 16, 1]),
    "in validation, killed": ({"every_steps": 8}, "SIGKILL", ["val", 16, 1]),
    "in validation in mid-epoch": ({"trainer": {"val_check_interval": 0.5}}, "SIGTERM", ["val", 12, 0]),
    "validation behind the saved step": (
        {"trainer": {"val_check_interval": 0.5}, "every_steps": 4},
        "SIGKILL",
        ["val", 12, 2],
    ),
    "in the sanity check": ({}, "SIGTERM", ["sanity"]),
    "workers": ({"workers": 2}, "SIGTERM", MID_EPOCH),
    "persistent workers": ({"workers": 2, "persistent": 1}, "SIGTERM", LAST_BATCH),
    "persistent workers, killed": ({"workers": 2, "persistent": 1}, "SIGKILL", MID_EPOCH),
    "accumulation, first of two": ({"trainer": {"accumulate_grad_batches": 2}}, "SIGTERM", ["batch", 11]),
    "accumulation, second of two": ({"trainer": {"accumulate_grad_batches": 2}}, "SIGTERM", ["batch", 12]),
    "accumulation, odd end of epoch": ({"trainer": {"accumulate_grad_batches": 3}}, "SIGTERM", LAST_BATCH),
    "two optimizers by hand": ({"manual": 1}, "SIGTERM", MID_EPOCH),
    "plateau scheduler": ({"plateau": "epoch"}, "SIGTERM", MID_EPOCH),
    "plateau scheduler on steps": ({"plateau": "step"}, "SIGTERM", MID_EPOCH),
    "stateful loader": ({"loader": "stateful"}, "SIGTERM", MID_EPOCH),
    "stateful loader, last batch": ({"loader": "stateful"}, "SIGTERM", LAST_BATCH),
    # torchdata restores the order, but not the random streams of its workers
    "stateful loader, workers": ({"loader": "stateful", "workers": 2, "augment": 0}, "SIGTERM", MID_EPOCH),
    "plain shuffling loader": ({"loader": "plain"}, "SIGTERM", MID_EPOCH),
    "plain shuffling loader, last batch": ({"loader": "plain"}, "SIGTERM", LAST_BATCH),
    "two optimizers by hand, accumulating": ({"manual": 2}, "SIGTERM", MID_EPOCH),
    "steps, mid-epoch": ({"trainer": STEPS}, "SIGTERM", MID_EPOCH),
    "steps, last batch of an epoch": ({"trainer": STEPS}, "SIGTERM", LAST_BATCH),
    "steps, in validation": ({"trainer": STEPS}, "SIGTERM", ["val", 16, 1]),
    "steps, behind an epoch, killed": ({"trainer": STEPS, "every_steps": 8}, "SIGKILL", ["epoch_end", 1]),
    "last batch of a limited epoch": ({"trainer": {"limit_train_batches": 6}}, "SIGTERM", ["batch", 12]),
    "validation in every other epoch, without": ({"trainer": EVERY_OTHER}, "SIGTERM", ["batch", 8]),
    "validation across epochs, within": ({"trainer": ACROSS}, "SIGTERM", ["val", 15, 0]),
    "validation across epochs, last batch": ({"trainer": ACROSS}, "SIGTERM", LAST_BATCH),
    "asked to stop too early": ({"stop_at": 10, "trainer": {"min_epochs": 2}}, "SIGTERM", MID_EPOCH),
    "stream": ({"loader": "stream"}, "SIGTERM", MID_EPOCH),
    "stream, last batch": ({"loader": "stream"}, "SIGTERM", LAST_BATCH),
    "stateful stream": ({"loader": "stateful stream"}, "SIGTERM", MID_EPOCH),
    "stateful stream, last batch": ({"loader": "stateful stream"}, "SIGTERM", LAST_BATCH),
    "clipped gradients in bfloat16": (
        {"trainer": {"gradient_clip_val": 0.1, "precision": "bf16-mixed"}},
        "SIGTERM",
        MID_EPOCH,
    ),
    "loaders made anew every epoch": ({"trainer": {"reload_dataloaders_every_n_epochs": 1}}, "SIGTERM", MID_EPOCH),
    "loaders made anew every epoch, last batch": (
        {"trainer": {"reload_dataloaders_every_n_epochs": 1}},
        "SIGTERM",
        LAST_BATCH,
    ),
    "two loaders": ({"loader": "two"}, "SIGTERM", MID_EPOCH),
    "averaged weights": ({"callbacks": ["ema"]}, "SIGTERM", MID_EPOCH),
    "averaged weights, in validation": ({"callbacks": ["ema"]}, "SIGTERM", ["val", 16, 1]),
    "scheduler that looks at the epoch's mean": ({"plateau": "epoch", "monitor": "mean_loss"}, "SIGTERM", MID_EPOCH),
    "backbone frozen at first": ({"callbacks": ["unfreeze"]}, "SIGTERM", MID_EPOCH),
    "accumulation that grows": ({"callbacks": ["accumulation by epoch"]}, "SIGTERM", MID_EPOCH),
    "two ranks": ({"ranks": 2, "samples": 83}, "SIGTERM", MID_EPOCH),
    "two ranks, killed": ({"ranks": 2, "samples": 83}, "SIGKILL", MID_EPOCH),
    "two ranks, last batch, workers": ({"ranks": 2, "samples": 83, "workers": 2}, "SIGTERM", ["batch", 18]),
    "two ranks, in validation": ({"ranks": 2, "samples": 83}, "SIGTERM", ["val", 18, 1]),
    "two ranks, stateful stream": ({"ranks": 2, "loader": "stateful stream"}, "SIGTERM", MID_EPOCH),
}


@pytest.mark.parametrize(("settings", "signal_name", "at"), DRILLS.values(), ids=DRILLS)
def test_resumed_equals_uninterrupted(settings, signal_name, at, references, tmp_path):
    """
    Whatever signal comes wherever: weights, optimizer, schedulers, streams, callbacks, order of samples and every
    loss are those of a training that was never interrupted.
    """
    reference = references(settings)

    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL
    train(tmp_path, {**settings, "signal": signal_name, "at": at}, expect=code)
    train(tmp_path, settings, expect=0)

    ranks = settings.get("ranks", 1)
    assert_same_training(tmp_path, reference, ranks)
    assert_same_fingerprints(tmp_path, reference, ranks)
    for rank in range(ranks):
        assert len(resumed_steps(tmp_path, rank)) == 1, "it must have gone on, not begun anew"
