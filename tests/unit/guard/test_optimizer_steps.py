"""The steps of every optimizer of the process."""

from __future__ import annotations

import gc

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from spot_plugins.guard import OptimizerSteps


@pytest.fixture
def steps():
    counted = OptimizerSteps()
    yield counted
    counted.close()


def _sgd():
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def test_every_optimizer_is_counted_and_told_apart(steps):
    first, second = _sgd(), torch.optim.Adam(nn.Linear(1, 1).parameters())
    first.step()
    second.step()
    first.step()

    assert (steps.total, steps.of(first), steps.of(second)) == (3, 2, 1)
    assert steps.seen() == [first, second]


def test_the_optimizer_in_accelerates_wrapper_counts_once(steps):
    optimizer = _sgd()
    Accelerator(cpu=True).prepare(optimizer).step()

    assert (steps.total, steps.of(optimizer)) == (1, 1)


def test_an_optimizer_that_is_gone_is_forgotten(steps):
    optimizer = _sgd()
    optimizer.step()
    del optimizer
    gc.collect()

    assert steps.seen() == []
    assert steps.total == 1


def test_nothing_is_counted_after_the_end(steps):
    steps.close()
    optimizer = _sgd()
    optimizer.step()

    assert (steps.total, steps.of(optimizer)) == (0, 0)


def test_a_listener_hears_of_each_step_after_it():
    heard = []
    counted = OptimizerSteps(lambda optimizer: heard.append((optimizer, counted.of(optimizer))))
    optimizer = _sgd()
    optimizer.step()
    counted.close()

    assert heard == [(optimizer, 1)]
