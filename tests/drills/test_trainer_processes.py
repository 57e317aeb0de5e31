"""Promise 4 under transformers' Trainer, with real signals to real processes, of which one may have several ranks."""

from __future__ import annotations

import signal
from collections import Counter
from functools import partial

import launching
import pytest
from exactness import References, assert_same_fingerprints, assert_same_training, lines, resumed_steps
from launching import exit_codes, launch_ranks

pytestmark = pytest.mark.sampled

train = partial(launching.train, "trainer_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


PAIR = {"ranks": 2, "samples": 41, "batch": 2, "epochs": 2}
ONE = {"samples": 21, "batch": 2, "epochs": 2}

# settings, signal, where it comes, the step after which the training continues
DRILLS = {
    "killed": (ONE, "SIGKILL", ["batch", 8], 5),
    "workers": (ONE | {"workers": 2}, "SIGTERM", ["batch", 8], 8),
    "persistent workers, in evaluation": (ONE | {"workers": 2, "persistent": True}, "SIGTERM", ["val", 6], 8),
    "workers, killed": (ONE | {"workers": 2}, "SIGKILL", ["batch", 13], 10),
    "two ranks": (PAIR, "SIGTERM", ["batch", 8], 8),
    "two ranks, killed": (PAIR, "SIGKILL", ["batch", 8], 5),
    "two ranks, in evaluation": (PAIR, "SIGTERM", ["val", 3], 8),
    "two ranks, accumulation": (PAIR | {"accumulate": 3}, "SIGTERM", ["batch", 8], 3),
}


@pytest.mark.parametrize(("settings", "signal_name", "at", "step"), DRILLS.values(), ids=DRILLS)
def test_resumed_equals_uninterrupted(settings, signal_name, at, step, references, tmp_path):
    """Every batch, every loss, the log and the state at the end are those of a training that was left alone."""
    reference = references(settings)
    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL

    train(tmp_path, {**settings, "signal": signal_name, "at": at}, expect=code)
    train(tmp_path, settings, expect=0)

    ranks = settings.get("ranks", 1)
    for rank in range(ranks):
        assert resumed_steps(tmp_path, rank) == [step]
    assert_same_training(tmp_path, reference, ranks)
    assert_same_fingerprints(tmp_path, reference, ranks)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_notice_for_one_rank(rank, references, tmp_path):
    """Both save the same step and leave."""
    processes = launch_ranks("trainer_train", tmp_path, {**PAIR, "at": ["batch", 7], "to": [[rank, 0]]})
    assert exit_codes(processes) == [143, 143]
    train(tmp_path, PAIR, expect=0)

    assert resumed_steps(tmp_path, 0) == resumed_steps(tmp_path, 1)
    assert_same_training(tmp_path, references(PAIR), ranks=2)


def samples_of(folder, steps):
    """Return the samples of each step, over all ranks, of those numbered *steps*."""
    found = {}
    for rank in range(2):
        if (folder / f"trace-{rank}.jsonl").exists():
            for kind, step, _, samples, _ in lines(folder, "trace", rank):
                if kind == "batch" and step in steps:
                    found.setdefault(step, []).extend(samples)
    return {step: sorted(samples) for step, samples in found.items()}


def test_other_numbers_of_ranks(references, tmp_path):
    """Two ranks, one that accumulates twice as much, and two: each step has the samples that it would have had."""
    settings = PAIR | {"samples": 40}
    reference = references(settings)

    train(tmp_path, {**settings, "signal": "SIGTERM", "at": ["batch", 4]}, expect=143)
    train(tmp_path, {**settings, "ranks": 1, "signal": "SIGTERM", "at": ["batch", 11]}, expect=143)
    train(tmp_path, settings, expect=0)

    assert resumed_steps(tmp_path, 0) == [4, 10]
    found = samples_of(tmp_path, range(20))
    assert found == samples_of(reference, range(20))
    for epoch in range(2):
        seen = Counter(sample for step in range(10 * epoch, 10 * epoch + 10) for sample in found[step])
        assert seen == Counter(range(40)), "each sample comes once"
