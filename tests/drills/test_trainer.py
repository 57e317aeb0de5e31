"""Ordinary trainings with transformers' Trainer, interrupted, and equal in every bit to those left alone."""

from __future__ import annotations

import pytest
from trainer_lives import assert_exact
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

IN_STEP = ("notice", "train", 7)
KILL = ("kill", "train", 9)
IN_EVALUATION = ("notice", "evaluate", 2)
BY_STEPS = {"eval_strategy": "steps", "eval_steps": 3}
BY_EPOCHS = dict.fromkeys(("eval_strategy", "logging_strategy", "save_strategy"), "epoch")
BEST = {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True, "metric_for_best_model": "loss"}

LAST_OF_EPOCH = 11
"""The last batch of an epoch."""


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_notice_and_a_kill(accumulation, tmp_path):
    """A notice in a step, and a kill between two saves. A step takes one batch or three, and two at an epoch's end."""
    assert_exact(tmp_path, IN_STEP, KILL, every_steps=2, gradient_accumulation_steps=accumulation)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("settings", [BY_STEPS, BY_EPOCHS], ids=["steps", "epochs"])
def test_a_notice_in_an_evaluation(settings, accumulation, tmp_path):
    """The process leaves within a batch, and the next one evaluates again."""
    lives = assert_exact(tmp_path, IN_EVALUATION, IN_EVALUATION, gradient_accumulation_steps=accumulation, **settings)

    for life in lives[1:3]:
        assert sum(kind == "evaluate" for kind, *_ in life.trace) == 2


@pytest.mark.parametrize("how", ["notice", "kill"])
@pytest.mark.parametrize("settings", [{}, BY_EPOCHS, BY_STEPS], ids=["none", "epochs", "steps"])
def test_the_end_of_an_epoch(settings, how, tmp_path):
    """What belongs to the end of the epoch is done by the next process."""
    assert_exact(tmp_path, (how, "train", LAST_OF_EPOCH), every_steps=1, gradient_accumulation_steps=3, **settings)


@pytest.mark.parametrize("at", [7, 17])
def test_max_steps(at, tmp_path):
    """A training that ends in the middle of an epoch, interrupted in a step and in the last one."""
    assert_exact(tmp_path, ("notice", "train", at), max_steps=17, **BY_STEPS)


@pytest.mark.parametrize("kind", ["linear", "cosine", "reduce_lr_on_plateau"])
def test_schedules(kind, tmp_path):
    """A schedule continues, also one that depends on evaluations."""
    more = (
        {"metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 0}} if kind.startswith("reduce") else {}
    )
    assert_exact(tmp_path, IN_STEP, IN_EVALUATION, KILL, every_steps=2, lr_scheduler_type=kind, **BY_STEPS, **more)


class Counting(TrainerCallback, ExportableState):
    """Stops an epoch early, by a count of its own."""

    def __init__(self):
        self.num_steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.num_steps += 1
        control.should_epoch_stop = self.num_steps % 8 == 0

    def state(self):
        return {"args": {}, "attributes": {"num_steps": self.num_steps}}


@pytest.mark.parametrize("at", [7, 8, 9])
def test_a_callback_with_a_state(at, tmp_path):
    """Its attributes are restored, and what it has decided in the saved step is carried out."""

    def change(given):
        return given | {"callbacks": [*given["callbacks"], Counting()]}

    assert_exact(tmp_path, ("notice", "train", at), change=change, num_train_epochs=3, **BY_STEPS)


@pytest.mark.parametrize(
    "interrupt",
    [("notice", "evaluate", 14), ("notice", "train", 17), ("kill", "train", 14)],
    ids=["evaluation", "step", "kill"],
)
def test_early_stopping_and_the_best_model(interrupt, tmp_path):
    """The patience, the best metric and the best checkpoint continue, and the same weights are loaded at the end."""

    def change(given):
        return given | {"callbacks": [EarlyStoppingCallback(2), *given["callbacks"]]}

    settings = {"num_train_epochs": 8, "learning_rate": 0.05} | BY_STEPS | BEST
    alone, *_ = assert_exact(tmp_path, interrupt, change=change, every_steps=2, **settings)

    assert alone.trainer.state.global_step < 88, "it must have stopped early"
