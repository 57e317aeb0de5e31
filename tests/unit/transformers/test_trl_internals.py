"""The state of a trainer of TRL that generates. The real trainers are interrupted in tests/drills."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from spot_plugins.errors import ConfigError
from spot_plugins.state import decode, encode
from spot_plugins.transformers import trl_internals
from spot_plugins.transformers.part import TrainerPart


class Generating(Trainer):
    """A trainer with the attributes by which those of TRL that generate are known."""

    num_iterations = 2
    num_generations = 2
    log_completions = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._step = 0
        self._buffered_inputs = None
        self.args.steps_per_generation = 3
        self._logs = {"images": deque(), "prompt": deque(maxlen=2), "rewards": defaultdict(lambda: deque(maxlen=2))}


@pytest.fixture
def make(tmp_path):
    def make(**attributes):
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
        trainer = Generating(model=nn.Linear(1, 1), args=arguments)
        vars(trainer).update(attributes)
        return trainer

    return make


def stored(state):
    """Return *state* as a resumed process has it."""
    return decode(*encode(state))


def test_a_generation_that_is_not_spent_is_saved(make):
    """After 5 of 6 batches another one is trained on it, after 6 of them a new one is generated."""
    inputs = [{"ids": torch.arange(4.0), "num_items": torch.tensor(3), "none": None}]
    before, after = make(_step=5, _buffered_inputs=inputs), make()
    before._logs["prompt"] += ["w1", "w2"]
    before._logs["rewards"]["length"] += [0.5, float("nan")]

    trl_internals.set_generations(after, stored(trl_internals.generations(before)))

    assert after._step == 5
    assert torch.equal(after._buffered_inputs[0]["ids"], torch.arange(4.0))
    assert list(after._logs["prompt"]) == ["w1", "w2"]
    assert after._logs["rewards"]["length"].maxlen == 2
    assert after._logs["rewards"]["length"][0] == 0.5
    before._step = 6
    assert trl_internals.generations(before)["inputs"] is None


@pytest.mark.parametrize("name", ["num_iterations", "num_generations"])
def test_another_division_of_a_generation_is_refused(name, make):
    """It would train on other samples, or on some of them twice."""
    state = stored(TrainerPart(make(), 8).state_dict())

    words = f"{name}=5 differs from {name}=2 in the checkpoint, so the generation that was begun does not fit"
    with pytest.raises(ConfigError, match=words):
        TrainerPart(make(**{name: 5}), 8).load_state_dict(state)
