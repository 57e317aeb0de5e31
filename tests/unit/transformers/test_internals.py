"""A transformers that lacks a private name is refused by that name, before anything is prepared."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import transformers.trainer
from torch import nn
from transformers import Trainer, TrainingArguments

from spot_plugins.errors import ConfigError
from spot_plugins.transformers import SpotTrainerCallback, internals, trl_internals
from spot_plugins.transformers.tracker_internals import TRACKERS


@pytest.fixture
def trainer(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "output"), use_cpu=True, report_to=[], disable_tqdm=True)
    return Trainer(model=nn.Linear(1, 1), args=arguments)


def attached(trainer, tmp_path):
    SpotTrainerCallback(str(tmp_path / "run"), every_steps=1).attach(trainer)
    return trainer


def assert_names(refused, name):
    assert f"has no {name}, " in str(refused.value)
    assert "transformers=5." in str(refused.value)
    assert "pip install 'transformers==5.23.*'" in str(refused.value)


def test_the_installed_version_has_everything(trainer):
    """The check passes where our other tests pass."""
    internals.check(trainer)


@pytest.mark.parametrize("name", internals.METHODS)
def test_a_missing_method_is_named(name, trainer, tmp_path, monkeypatch):
    """The run has not begun."""
    attached(trainer, tmp_path)
    monkeypatch.delattr(Trainer, name)

    with pytest.raises(ConfigError) as refused:
        internals.check(trainer)

    assert_names(refused, f"Trainer.{name}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", internals.METHODS)
def test_another_signature_is_named(name, trainer, monkeypatch):
    """With the parameters that were expected."""
    monkeypatch.setattr(Trainer, name, lambda self, another: None)

    with pytest.raises(ConfigError) as refused:
        internals.check(trainer)

    assert_names(refused, f"Trainer.{name}({', '.join(internals.METHODS[name])})")


@pytest.mark.parametrize("path", internals.ATTRIBUTES)
def test_a_missing_attribute_is_named(path, trainer):
    """The name may be one of the trainer, or of an object that the trainer has."""
    *owners, name = path.split(".")
    holder = trainer
    for owner in owners:
        holder = getattr(holder, owner)
    delattr(holder, name)

    with pytest.raises(ConfigError) as refused:
        internals.check(trainer)

    assert_names(refused, f"Trainer.{path}")


def test_the_missing_function_is_named(trainer, monkeypatch):
    """The trainer leaves out batches by a function of Accelerate that it has imported."""
    monkeypatch.delattr(transformers.trainer, "skip_first_batches")

    with pytest.raises(ConfigError) as refused:
        internals.check(trainer)

    assert_names(refused, "trainer.skip_first_batches")


@pytest.mark.parametrize("name", internals.LOSSES)
def test_the_training_loop_sets_the_counters(name):
    """The counters that are restored are attributes of a trainer, under these names."""
    assert f"self.{name}" in inspect.getsource(Trainer)


@pytest.mark.parametrize("tracker", TRACKERS.values(), ids=TRACKERS)
def test_trackers_have_the_names(tracker):
    """The trackers themselves are not installed, so only the source of their callbacks tells."""
    source = inspect.getsource(tracker.kind)

    assert [name for name in tracker.attributes if f"self.{name}" not in source] == []


GENERATES = (*trl_internals.METRICS, trl_internals.GENERATIONS, *trl_internals.GENERATED)
TRL_NAMES = {
    **dict.fromkeys(["sft_trainer", "dpo_trainer", "reward_trainer", "kto_trainer"], trl_internals.METRICS),
    **dict.fromkeys(["rloo_trainer", "distillation_trainer"], GENERATES),
    "grpo_trainer": (*GENERATES, *trl_internals.ENTROPY),
}


@pytest.mark.parametrize(("module", "names"), TRL_NAMES.items())
def test_trainers_of_trl_have_the_names(module, names):
    """The attributes are only looked for, so nothing else tells that a new TRL has renamed one."""
    source = (Path(importlib.util.find_spec("trl").origin).parent / "trainer" / f"{module}.py").read_text()

    assert [name for name in names if f"self.{name}" not in source] == []
