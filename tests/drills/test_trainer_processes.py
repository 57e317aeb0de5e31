"""Promise 4 under transformers' Trainer, with real signals to real processes, of which one may have several ranks."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import launching
import pytest
import torch
from exactness import References, assert_same_fingerprints, assert_same_training, resumed_steps
from hearing import remove
from launching import PROGRAMS, exit_codes, launch_ranks, start
from ports import free_port

pytestmark = pytest.mark.sampled

train = partial(launching.train, "trainer_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


CONFIG = Path(__file__).parents[2] / "examples" / "accelerate_configs" / "two_cpus_fsdp2.yaml"
PAIR = {"ranks": 2, "samples": 41, "batch": 2, "epochs": 2}
ONE = {"samples": 21, "batch": 2, "epochs": 2}
STREAM = PAIR | {"loader": "stream", "trainer": {"max_steps": 28}}
"""A stream, whose passes have 11 steps. Rank 0 reads it for both."""

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
    "two ranks, grouped by length": (PAIR | {"sampling": "group_by_length"}, "SIGTERM", ["batch", 8], 8),
    "two ranks, FSDP2": (PAIR | {"wrapper": "fsdp2"}, "SIGTERM", ["batch", 8], 8),
    "two ranks, FSDP2, killed": (PAIR | {"wrapper": "fsdp2", "accumulate": 3}, "SIGKILL", ["batch", 17], 5),
}


HUGGING_FACE = STREAM | {"loader": "hugging face"}
WINDOWS = STREAM | {"accumulate": 3, "trainer": {"max_steps": 8}}
BY_EACH_RANK = STREAM | {"trainer": {"max_steps": 28, "accelerator_config": {"dispatch_batches": False}}}
STREAMS = {
    "in the second pass": (HUGGING_FACE, "SIGTERM", ["batch", 15], 15),
    "killed": (STREAM, "SIGKILL", ["batch", 15], 10),
    "at the end of a pass": (STREAM, "SIGTERM", ["batch", 11], 11),
    "accumulation": (WINDOWS, "SIGTERM", ["batch", 8], 3),
    "accumulation over the end of a pass": (WINDOWS, "SIGTERM", ["batch", 11], 4),
    "workers": (STREAM | {"workers": 2}, "SIGTERM", ["batch", 15], 15),
    "workers, shards": (HUGGING_FACE | {"workers": 2}, "SIGTERM", ["batch", 15], 15),
    "by each rank": (BY_EACH_RANK, "SIGTERM", ["batch", 15], 15),
    "by each rank, workers": (BY_EACH_RANK | {"workers": 2}, "SIGTERM", ["batch", 15], 15),
    "by each rank, shards": (BY_EACH_RANK | {"loader": "hugging face", "samples": 40}, "SIGTERM", ["batch", 8], 8),
}
STATEFUL = STREAM | {"loader": "stateful", "samples": 40}
STREAMS |= {
    "a loader that restores itself": (STATEFUL, "SIGTERM", ["batch", 15], 15),
    "a loader that restores itself, workers": (STATEFUL | {"workers": 2}, "SIGTERM", ["batch", 8], 8),
    "a loader that restores itself, by each rank": (
        BY_EACH_RANK | {"loader": "stateful", "samples": 40},
        "SIGTERM",
        ["batch", 15],
        15,
    ),
}
FIRST_STREAM, *MORE_STREAMS = STREAMS.items()
DRILLS = DRILLS | {f"two ranks, a stream, {FIRST_STREAM[0]}": FIRST_STREAM[1]}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("settings", "signal_name", "at", "step"),
    [case for _, case in MORE_STREAMS],
    ids=[name for name, _ in MORE_STREAMS],
)
def test_streams(settings, signal_name, at, step, references, tmp_path):
    """Each sample comes in its pass and at its place, whoever reads the stream."""
    test_resumed_equals_uninterrupted(settings, signal_name, at, step, references, tmp_path)


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


def samples_of(folder):
    """Return the samples of each step, over all ranks."""
    found = {}
    for path in folder.glob("trace-*.jsonl"):
        for kind, step, _, samples, _ in map(json.loads, path.read_text().splitlines()):
            if kind == "batch":
                found.setdefault(step, []).extend(samples)
    return {step: sorted(samples) for step, samples in found.items()}


def rates_of(folder):
    """Return the learning rate of each step that was logged."""
    log = torch.load(folder / "final-0.pt", weights_only=False)["log"]
    return {each["step"]: each["learning_rate"] for each in log if "learning_rate" in each}


# settings, the ranks of each life and the batch in which it is interrupted
CHANGES = {
    "2, 1, 2": ({}, [(2, 4), (1, 11), (2, None)]),
    "3, 2": ({"accumulate": 2}, [(3, 5), (2, None)]),
    "grouped by length, 2, 1, 2": ({"sampling": "group_by_length"}, [(2, 4), (1, 11), (2, None)]),
    "FSDP2, 2, 1, 2": ({"wrapper": "fsdp2"}, [(2, 4), (1, 11), (2, None)]),
    "a stream, 2, 1, 2": ({"loader": "stream", "trainer": {"max_steps": 20}}, [(2, 4), (1, 11), (2, None)]),
}


@pytest.mark.parametrize(("more", "lives"), CHANGES.values(), ids=CHANGES)
def test_other_numbers_of_ranks(more, lives, references, tmp_path):
    """Accumulation changes, so each step has the samples and the learning rate that it would have had."""
    settings = ONE | {"samples": 48 if len(lives) == 2 else 40} | more
    num_samples, first_ranks = settings["samples"], lives[0][0]
    reference = references(settings | {"ranks": first_ranks})

    for ranks, batch in lives:
        stop = {"signal": "SIGTERM", "at": ["batch", batch]} if batch else {}
        train(tmp_path, settings | stop | {"ranks": ranks}, expect=143 if batch else 0)

    found, expected = samples_of(tmp_path), samples_of(reference)
    assert found == expected
    num_steps = len(found) // 2
    for epoch in range(2):
        seen = Counter(sample for step in range(epoch * num_steps, (epoch + 1) * num_steps) for sample in found[step])
        assert seen == Counter(range(num_samples)), "each sample comes once"
    assert rates_of(tmp_path) == rates_of(reference)


def test_ranks_that_cannot_keep_the_samples_of_a_step(tmp_path):
    """Six samples on two ranks: the start is refused on both, in words."""
    train(tmp_path, ONE | {"ranks": 3, "signal": "SIGTERM", "at": ["batch", 2]}, expect=143)

    train(tmp_path, ONE | {"ranks": 2}, expect=1)

    for rank in range(2):
        words = "a step of this run is made of 6 samples, which do not divide into batches of 2 on 2 ranks"
        assert words in (tmp_path / f"output-{rank}.txt").read_text()


def test_fsdp2_with_accelerate_launch(references, tmp_path):
    """The launcher and its configuration file, a signal to the ranks, and the same command again."""
    settings = PAIR | {"wrapper": "fsdp2"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    options = ["--fsdp_transformer_layer_cls_to_wrap", "Linear"]

    def launch(**more):
        command = [*launcher, f"--main_process_port={free_port()}", *options, str(PROGRAMS / "trainer_train.py")]
        return start(command, tmp_path, settings | more, {"ACCELERATE_USE_CPU": "true"}).wait(240)

    assert launch(signal="SIGTERM", at=["batch", 8]) == 1, "the launcher's own code, whatever the ranks' are"
    assert launch() == 0, (tmp_path / "output.txt").read_text()[-3000:]

    assert resumed_steps(tmp_path, 0) == [8]
    assert_same_training(tmp_path, references(settings), ranks=2)


BEST_OF_STEPS = {
    "save_strategy": "steps",
    "save_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "learning_rate": 0.3,
}


@pytest.mark.soak
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapters"])
def test_the_best_model_of_a_lost_machine(lora, references, tmp_path):
    """Rank 0 writes the weights of the best step again, from the run, and both ranks load them at the end."""
    settings = PAIR | {"lora": lora, "trainer": BEST_OF_STEPS}
    train(tmp_path, settings | {"signal": "SIGTERM", "at": ["batch", 19]}, expect=143)
    remove(tmp_path / "output")

    train(tmp_path, settings, expect=0)

    said = "was on another machine, and its weights are written again, from step"
    assert [said in (tmp_path / f"output-{rank}.txt").read_text() for rank in range(2)] == [True, False]
    step, _, ends_as_best = torch.load(tmp_path / "final-0.pt", weights_only=False)["best"]
    assert step < 19
    assert ends_as_best
    assert_same_training(tmp_path, references(settings), ranks=2)


def fsdp2_best(state_dict_type, **more):
    """Return the settings of a training with FSDP2 that ends with its best weights."""
    wrapped = {"version": 2, "transformer_layer_cls_to_wrap": ["Linear"], "state_dict_type": state_dict_type}
    best = {"save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    return PAIR | {"wrapper": "fsdp2", "trainer": best | {"fsdp_config": wrapped} | more}


# settings, signal, where it comes, the step whose weights are the best
BEST = {
    "whole, adapters": (
        fsdp2_best("FULL_STATE_DICT", learning_rate=0.3) | {"lora": True},
        "SIGTERM",
        ["val", 4],
        8,
    ),
    "sharded, adapters": (
        fsdp2_best("SHARDED_STATE_DICT", learning_rate=0.3) | {"lora": True},
        "SIGKILL",
        ["batch", 13],
        8,
    ),
    "sharded, the last step": (fsdp2_best("SHARDED_STATE_DICT"), "SIGTERM", ["batch", 8], 22),
}


@pytest.mark.soak
@pytest.mark.parametrize(("settings", "signal_name", "at", "best"), BEST.values(), ids=BEST)
def test_the_best_model_with_fsdp2(settings, signal_name, at, best, references, tmp_path):
    """The best weights are loaded at the end, and are those of a training that was left alone."""
    reference = references(settings)
    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL

    train(tmp_path, {**settings, "signal": signal_name, "at": at}, expect=code)
    train(tmp_path, settings, expect=0)

    step, _, ends_as_best = torch.load(tmp_path / "final-0.pt", weights_only=False)["best"]
    assert (step, ends_as_best) == (best, True)
    assert_same_training(tmp_path, reference, ranks=2)


LOST = {
    "the first": ("FULL_STATE_DICT", [0], False),
    "the second": ("FULL_STATE_DICT", [1], False),
    "all": ("FULL_STATE_DICT", [0, 1], True),
    "sharded, the second": ("SHARDED_STATE_DICT", [1], True),
    "sharded, all": ("SHARDED_STATE_DICT", [0, 1], False),
}


@pytest.mark.soak
@pytest.mark.parametrize(("state_dict_type", "lost", "lora"), LOST.values(), ids=LOST)
def test_the_best_model_of_a_lost_machine_with_fsdp2(state_dict_type, lost, lora, references, tmp_path):
    """The weights are loaded from the run, unless rank 0, which writes the whole weights, has its disk."""
    alone = fsdp2_best(state_dict_type, learning_rate=0.3) | {"lora": lora}
    settings = alone | {"output": "disk-{rank}"}
    train(tmp_path, settings | {"signal": "SIGKILL", "at": ["batch", 13]}, expect=-signal.SIGKILL)
    for rank in lost:
        shutil.rmtree(tmp_path / f"disk-{rank}")

    train(tmp_path, settings, expect=0)

    said = [(tmp_path / f"output-{rank}.txt").read_text() for rank in range(2)]
    is_needed = 0 in lost or state_dict_type == "SHARDED_STATE_DICT"
    assert ["is not on all machines, so the best weights will be loaded" in text for text in said] == [is_needed, False]
    assert ["Unless a later step is better" in text for text in said] == [False, False]
    assert_same_training(tmp_path, references(alone), ranks=2)
