"""The trainers of TRL beside SFTTrainer, ended by real signals, and equal in every bit to one that was left alone."""

from __future__ import annotations

import signal
from functools import partial

import launching
import pytest
from exactness import References, assert_same_fingerprints, assert_same_training, newest_step, resumed_steps

train = partial(launching.train, "trl_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


ONE = {"samples": 17, "batch": 2, "epochs": 2}
PAIR = {"samples": 26, "batch": 2, "epochs": 2, "ranks": 2}
WITH_DROPOUT = {"trainer": {"disable_dropout": False}}
SYNC = {"trainer": {"sync_ref_model": True, "ref_model_sync_steps": 2}}
PRECOMPUTED = {"trainer": {"precompute_ref_log_probs": True}}
GENERATES = {"trainer": {"max_completion_length": 5, "num_generations": 2, "beta": 0.1}, "samples": 8}


def trainer(host, *changes, **more):
    """Return the settings of a training. Arguments of the trainer are put together."""
    settings = {"host": host}
    for each in (*changes, more):
        both = {**settings.get("trainer", {}), **each.get("trainer", {})}
        settings = settings | each | ({"trainer": both} if both else {})
    return settings


TRAININGS = {
    "DPO": trainer("dpo", ONE, WITH_DROPOUT),
    "DPO, reference": trainer("dpo", ONE, reference=True),
    "DPO, LoRA": trainer("dpo", ONE, WITH_DROPOUT, lora=True, workers=2),
    "DPO, precomputed": trainer("dpo", ONE, PRECOMPUTED),
    "DPO, precomputed, LoRA": trainer("dpo", ONE, PRECOMPUTED, lora=True, accumulate=2),
    "DPO, synchronized": trainer("dpo", ONE, SYNC, WITH_DROPOUT, accumulate=2),
    "reward": trainer("reward", ONE, WITH_DROPOUT, workers=2, persistent=True),
    "reward, LoRA": trainer("reward", ONE, WITH_DROPOUT, lora=True, accumulate=3, every_steps=1),
    "KTO": trainer("kto", ONE, WITH_DROPOUT),
    "KTO, LoRA": trainer("kto", ONE, WITH_DROPOUT, lora=True, workers=2),
    "KTO, synchronized": trainer("kto", ONE, SYNC, reference=True),
    "KTO, precomputed": trainer("kto", ONE, PRECOMPUTED, accumulate=2),
    "DPO, two ranks": trainer("dpo", PAIR, WITH_DROPOUT, reference=True),
    "DPO, two ranks, LoRA": trainer("dpo", PAIR, WITH_DROPOUT, lora=True, accumulate=2),
    "DPO, two ranks, precomputed": trainer("dpo", PAIR, PRECOMPUTED),
    "DPO, two ranks, synchronized": trainer("dpo", PAIR, SYNC, workers=2),
    "DPO, two ranks, FSDP2": trainer("dpo", PAIR, wrapper="fsdp2"),
    "DPO, two ranks, FSDP2, synchronized": trainer("dpo", PAIR, SYNC, wrapper="fsdp2"),
    "reward, two ranks": trainer("reward", PAIR, WITH_DROPOUT),
    "KTO, two ranks": trainer("kto", PAIR, WITH_DROPOUT),
    "GRPO": trainer("grpo", ONE, GENERATES),
    "GRPO, LoRA": trainer("grpo", ONE, GENERATES, lora=True),
    "GRPO, several iterations": trainer(
        "grpo", ONE, GENERATES, trainer={"num_iterations": 2, "steps_per_generation": 4}, accumulate=2
    ),
    "GRPO, logged": trainer(
        "grpo", ONE, GENERATES, trainer={"log_completions": True, "logging_steps": 1, "use_adaptive_entropy": True}
    ),
    "GRPO, synchronized": trainer("grpo", ONE, GENERATES, SYNC, trainer={"num_iterations": 3}),
    "GRPO, two ranks": trainer("grpo", PAIR, GENERATES, trainer={"num_iterations": 2}, samples=16),
    "RLOO": trainer("rloo", ONE, GENERATES),
    "RLOO, several iterations": trainer(
        "rloo", ONE, GENERATES, trainer={"num_iterations": 2, "steps_per_generation": 3}, accumulate=2
    ),
    "distillation": trainer("distill", ONE, trainer={"max_completion_length": 5}, samples=14),
    "distillation, accumulation": trainer(
        "distill", ONE, trainer={"max_completion_length": 5}, samples=16, accumulate=3, every_steps=1
    ),
}
STREAM = {"loader": "stream", "trainer": {"max_steps": 18}}
GENERATED_FROM_STREAM = GENERATES | {"loader": "stream", "trainer": GENERATES["trainer"] | {"max_steps": 12}}
STREAMS = {
    "reward": trainer("reward", ONE, STREAM),
    "DPO": trainer("dpo", ONE, STREAM),
    "KTO": trainer("kto", ONE, STREAM),
    "GRPO": trainer("grpo", ONE, GENERATED_FROM_STREAM),
    "RLOO": trainer("rloo", ONE, GENERATED_FROM_STREAM),
    "reward, two ranks": trainer("reward", PAIR, STREAM),
    "GRPO, two ranks": trainer("grpo", PAIR, GENERATED_FROM_STREAM, samples=16),
}

ENDS = {
    "notice": ("SIGTERM", ["batch", 7]),
    "notice, later": ("SIGTERM", ["batch", 12]),
    "notice in an evaluation": ("SIGTERM", ["val", 2]),
    "killed": ("SIGKILL", ["batch", 8]),
}


ALWAYS = {("DPO, synchronized", "notice in an evaluation"), ("GRPO, several iterations", "killed")}
"""The cases that are not left to a soak."""
CASES = [
    pytest.param(name, end, marks=[] if (name, end) in ALWAYS else pytest.mark.soak, id=f"{name}-{end}")
    for name in TRAININGS
    for end in ENDS
]


@pytest.mark.parametrize(("name", "end"), CASES)
def test_resumed_equals_uninterrupted(name, end, references, tmp_path):
    """Every batch, every loss, the log and the state at the end are those of a training that was left alone."""
    settings, (signal_name, at) = {"every_steps": 3} | TRAININGS[name], ENDS[end]
    ranks = settings.get("ranks", 1)
    reference = references(settings)
    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL

    train(tmp_path, {**settings, "signal": signal_name, "at": at}, expect=code)
    stored = newest_step(tmp_path)
    train(tmp_path, settings, expect=0)

    (step,) = resumed_steps(tmp_path, 0)
    assert all(resumed_steps(tmp_path, rank) == [step] for rank in range(ranks))
    assert step == stored or signal_name == "SIGKILL", "a pusher may still push after its trainer was killed"
    assert_same_training(tmp_path, reference, ranks)
    assert_same_fingerprints(tmp_path, reference, ranks)


@pytest.mark.soak
@pytest.mark.parametrize("name", STREAMS)
def test_over_a_stream(name, references, tmp_path):
    """A stream of Hugging Face, whose samples a resumed training continues with."""
    TRAININGS[f"{name}, a stream"] = STREAMS[name]
    test_resumed_equals_uninterrupted(f"{name}, a stream", "notice", references, tmp_path)
