"""Ordinary trainings with transformers' Trainer, interrupted, and equal in every bit to those left alone."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from contract.hosts.lives import differences
from hearing import remove, until_pushers_end
from safetensors.torch import load_file
from trainer_lives import Interrupt, Life, Numbers, assert_exact, masked
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from spot_plugins.errors import ConfigError
from spot_plugins.format.kept import keep
from spot_plugins.resume.stored import stored_steps
from spot_plugins.store import open_store

pytestmark = pytest.mark.sampled

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
    """The next process does all that belongs to the end of the epoch."""
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


@pytest.mark.parametrize("loses_output", [False, True], ids=["same machine", "other machines"])
@pytest.mark.parametrize(
    "interrupt",
    [("notice", "evaluate", 14), ("notice", "train", 17), ("kill", "train", 14)],
    ids=["evaluation", "step", "kill"],
)
def test_early_stopping_and_the_best_model(interrupt, loses_output, tmp_path):
    """
    The patience, the best metric and the best checkpoint continue, and the same weights are loaded at the end.

    On another machine the run writes the weights again, from the step that it has kept.
    """

    def change(given):
        return given | {"callbacks": [EarlyStoppingCallback(2), *given["callbacks"]]}

    settings = {"num_train_epochs": 8, "learning_rate": 0.05} | BY_STEPS | BEST
    alone, *_, last = assert_exact(
        tmp_path, interrupt, change=change, loses_output=loses_output, every_steps=2, **settings
    )

    assert alone.trainer.state.global_step < 88, "it must have stopped early"
    assert alone.trainer.state.best_global_step < alone.trainer.state.global_step - 3, "its weights are loaded"
    assert last.trainer.state.best_model_checkpoint.startswith(str(tmp_path / "output"))
    until_pushers_end()
    kept = [each.step for each in stored_steps(str(tmp_path / "run")) if each.kept_by]
    assert kept == [alone.trainer.state.best_global_step], "the others are released"


def test_a_step_that_an_earlier_process_did_not_come_to_release_is_released(tmp_path):
    """Its process may end between the commit of the last step and the release."""
    url, settings = str(tmp_path / "run"), {"num_train_epochs": 8, "learning_rate": 0.05} | BY_STEPS | BEST

    def life(interrupt=None):
        change = lambda given: given | {"callbacks": [EarlyStoppingCallback(2), *given["callbacks"]]}  # noqa: E731
        return Life(url, tmp_path / "output", interrupt, change=change, **settings)

    assert life(Interrupt("notice", "train", 17)).run() == "Preempted"
    until_pushers_end()
    keep(open_store(url), 1, 17, "trainer", is_saving=False)
    last = life()

    assert last.run() == "finished"

    until_pushers_end()
    assert last.trainer.state.best_global_step != 17
    assert [each.step for each in stored_steps(url) if each.kept_by] == [last.trainer.state.best_global_step]


@pytest.mark.soak
def test_the_best_checkpoint_of_an_earlier_step(tmp_path, caplog):
    """Every other evaluation has no checkpoint, so a step without one may be better. The written one is kept."""
    settings = {"num_train_epochs": 6, "learning_rate": 0.05} | BY_STEPS | BEST | {"save_steps": 6}
    with caplog.at_level(logging.INFO, logger="spot_plugins"):
        alone, *_ = assert_exact(tmp_path, ("notice", "train", 53), loses_output=True, every_steps=2, **settings)

    losses = {each["step"]: each["eval_loss"] for each in alone.trainer.state.log_history if "eval_loss" in each}
    best = min((step for step in losses if step <= 53), key=losses.get)
    (written,) = re.findall(r"checkpoint-(\d+) was on another machine", caplog.text)
    assert best % 6 == 3, "this training does not tell the two apart"
    assert int(written) < best


def lives_of(folder, **settings):
    """Return a function that makes lives of one run in *folder*."""
    return lambda interrupt=None, **more: Life(f"{folder}/run", folder / "output", interrupt, **(settings | more))


def interrupted_with_best(folder):
    """Interrupt a training whose best step is 3. Return the checkpoint of that step, and the life that continues."""
    make = lives_of(folder, num_train_epochs=1, learning_rate=1.0, **BY_STEPS, **BEST)
    assert make(Interrupt("notice", "train", 8)).run() == "Preempted"
    return folder / "output/checkpoint-3", make(max_steps=8)


def test_the_best_model_of_another_machine(tmp_path, caplog):
    """The weights of its step are written again, as the trainer wrote them, and a line says so."""
    checkpoint, life = interrupted_with_best(tmp_path)
    expected = load_file(checkpoint / "model.safetensors")
    remove(checkpoint)

    with caplog.at_level(logging.INFO, logger="spot_plugins"):
        assert life.run() == "finished"

    assert f"{checkpoint} was on another machine, and its weights are written again, from step 3" in caplog.text
    assert differences(load_file(checkpoint / "model.safetensors"), expected) == []
    assert differences(dict(life.trainer.model.state_dict()), expected) == []
    assert life.trainer.state.best_model_checkpoint == str(checkpoint)


def test_the_best_model_in_another_output_dir(tmp_path):
    """It is written to the folder that the program names now."""
    checkpoint, life = interrupted_with_best(tmp_path)
    expected = load_file(checkpoint / "model.safetensors")
    remove(checkpoint)
    life.trainer.args.output_dir = str(tmp_path / "new")

    assert life.run() == "finished"

    assert life.trainer.state.best_model_checkpoint == str(tmp_path / "new/checkpoint-3")
    assert differences(dict(life.trainer.model.state_dict()), expected) == []


def test_the_best_model_that_no_step_has(tmp_path):
    """If its checkpoint and its step are gone, a warning says so. The training ends all the same."""
    checkpoint, life = interrupted_with_best(tmp_path)
    remove(checkpoint)
    for kept in (tmp_path / "run/steps").glob("0000000003-*"):
        remove(kept)

    with pytest.warns(
        UserWarning, match="is not on this machine, and the run does not give its weights: step=3 is not among the"
    ):
        assert life.run() == "finished"

    assert life.trainer.state.best_model_checkpoint is None
    assert not checkpoint.exists()


def test_the_best_model_of_another_setting(tmp_path):
    """FSDP writes other files. What cannot be loaded is not taken for loaded."""
    checkpoint, life = interrupted_with_best(tmp_path)
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model_fsdp.bin")

    with pytest.warns(
        UserWarning, match="of step 3, has no weights that this process can load, because it was written"
    ):
        assert life.run() == "finished"

    assert life.trainer.state.best_model_checkpoint != str(checkpoint)


@pytest.mark.filterwarnings("ignore:resume_from_checkpoint=.* stands in the middle of an epoch")
@pytest.mark.parametrize("step", [6, 11])
def test_a_run_begins_with_a_checkpoint_of_the_trainer(step, tmp_path, caplog):
    """The run continues from its own steps once it has some."""
    before = Life(f"{tmp_path}/before", tmp_path / "before-output", save_strategy="steps", save_steps=step)
    assert before.run() == "finished"
    checkpoint = str(tmp_path / f"before-output/checkpoint-{step}")
    caplog.clear()

    with caplog.at_level(logging.INFO, logger="spot_plugins"):
        _, first, _ = assert_exact(
            tmp_path, ("notice", "train", 3), arguments={"resume_from_checkpoint": checkpoint}, learning_rate=0.01
        )

    assert min(number for _, number, _ in first.trace) == step
    assert f"{checkpoint} counts at the start of a run. This one continues from its own step" in caplog.text


def test_a_checkpoint_in_the_middle_of_an_epoch_has_another_order(tmp_path):
    """A warning says what that means."""
    before = Life(f"{tmp_path}/before", tmp_path / "output", save_strategy="steps", save_steps=6, max_steps=6)
    assert before.run() == "finished"

    with pytest.warns(UserWarning, match="stands in the middle of an epoch, and this run has an order of samples"):
        Life(f"{tmp_path}/run", tmp_path / "new").run(resume_from_checkpoint=str(tmp_path / "output/checkpoint-6"))


def test_another_batch_size(tmp_path, caplog):
    """A step keeps its six samples, or the start is refused."""
    make = lives_of(tmp_path, gradient_accumulation_steps=3)
    assert make(Interrupt("notice", "train", 5)).run() == "Preempted"

    with pytest.raises(ConfigError, match="is made of 6 samples, which do not divide into batches of 4 on 1 ranks"):
        make(per_device_train_batch_size=4).run()

    with caplog.at_level(logging.INFO, logger="spot_plugins"):
        assert make(per_device_train_batch_size=1).run() == "finished"
    assert "gradient_accumulation_steps=6, not 3: a step is made of 6 samples, as the run began" in caplog.text


def test_another_schedule_and_another_clipping_are_told(tmp_path, caplog):
    """Neither is refused, because a user may want it."""
    make = lives_of(tmp_path)
    assert make(Interrupt("notice", "train", 5)).run() == "Preempted"

    assert make(lr_scheduler_type="cosine", max_grad_norm=0.5, max_steps=6).run() == "finished"

    assert "the function in lr_lambdas is another one than in the checkpoint" in caplog.text
    assert "max_grad_norm=0.5 is used from now on, not the checkpoint's 1.0" in caplog.text


def test_a_longer_training(tmp_path):
    """A run that has ended continues if the program has more epochs, also after the middle of an epoch."""
    make = lives_of(tmp_path, lr_scheduler_type="constant")
    for settings, step in (({"max_steps": 7}, 7), ({"num_train_epochs": 1}, 11), ({"num_train_epochs": 2}, 22)):
        life = make(**settings)
        assert life.run() == "finished"
        assert life.trainer.state.global_step == step
    alone = Life(f"{tmp_path}/alone", tmp_path / "alone", lr_scheduler_type="constant")
    alone.run()

    assert life.state()["model"].keys() == alone.state()["model"].keys()
    for name, value in alone.state()["model"].items():
        assert value.equal(life.state()["model"][name]), name


def test_a_training_that_is_shorter_now(tmp_path):
    """No step is made if the saved one is the last of the program or later. The loop of transformers would make one."""
    make = lives_of(tmp_path, lr_scheduler_type="constant")
    assert make(Interrupt("notice", "train", 5)).run() == "Preempted"

    life = make(max_steps=4)

    assert life.run() == "finished"
    assert (life.trainer.state.global_step, life.trace) == (5, {})


class Sized(Numbers):
    """Samples of 1 to 7 tokens. The length of an odd sample is drawn."""

    def __iter__(self):  # transformers asks each sample for its length
        return map(self.__getitem__, range(self.length))

    def __getitem__(self, index):
        length = 1 + (index * 5 % 7 if index % 2 == 0 else int(torch.randint(7, ())))
        return super().__getitem__(index) | {"input_ids": [index] * length}


def without_tokens(samples):
    return masked([{name: value for name, value in each.items() if name != "input_ids"} for each in samples])


def by_length(given):
    """Let a trainer have samples of several lengths, which it groups."""
    return given | {"train_dataset": Sized(21), "data_collator": without_tokens}


GROUPED = {"train_sampling_strategy": "group_by_length", "change": by_length}


@pytest.mark.parametrize("at", [7, LAST_OF_EPOCH])
def test_samples_grouped_by_length(at, tmp_path):
    """In a step of an odd number of batches, and at the end of an epoch."""
    assert_exact(tmp_path, ("notice", "train", at), KILL, every_steps=1, gradient_accumulation_steps=3, **GROUPED)


def test_other_lengths_are_refused(tmp_path):
    """The position would mean other samples. Nothing is trained."""
    make = lives_of(tmp_path, **GROUPED)
    assert make(Interrupt("notice", "train", 5)).run() == "Preempted"

    with pytest.raises(ConfigError, match=r"grouped=length-.*-2 differs from grouped=length-.*-2 in the checkpoint"):
        make(change=lambda given: by_length(given) | {"train_dataset": Longer(21)}).run()


class Longer(Sized):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"input_ids": sample["input_ids"] * 2}


def test_an_own_loader(tmp_path):
    """A trainer that makes its loader itself keeps it. The batches that were trained on are fetched again."""
    with pytest.warns(UserWarning, match="fetching .* batches again"):
        assert_exact(tmp_path, IN_STEP, KILL, every_steps=2, make=OwnLoader)


class OwnLoader(Trainer):
    def get_train_dataloader(self):
        return super().get_train_dataloader()
