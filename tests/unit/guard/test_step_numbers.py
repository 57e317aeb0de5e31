"""The guard tells a bare loop about its calls and its step numbers. Each program was silent before."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.errors import ConfigError
from spot_plugins.guard import guard
from spot_plugins.session import SpotSession


class Life:
    """One process life of a small training, in this process."""

    def __init__(self, url):
        self.session = SpotSession(SpotConfig(url=url, every_steps=1))
        torch.manual_seed(1)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.session.register_model(self.model, [self.optimizer])

    def __enter__(self):
        self.session.open()
        self.resumed = self.session.resume()
        return self

    def __exit__(self, *error):
        self.session.close()

    def train(self, *numbers):
        for number in numbers:
            self.step()
            self.session.after_step(number)

    def step(self):
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()


@pytest.fixture
def url(tmp_path):
    """A run with a committed step 10."""
    url = f"file://{tmp_path}/run"
    with Life(url) as life:
        life.train(*range(1, 11))
        life.session.finish(10)
    return url


def warned(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("first", [0, 1, 9, 10])
def test_numbers_that_begin_again_after_a_resume_are_an_error(url, first):
    with Life(url) as life:
        assert life.resumed == 10
        told = rf"after_step\({first}\) after a resume from step 10: the program does not continue"
        told += (
            r" after the step that resume\(\) returned\. Begin with `step = session\.resume\(\) or 0`, and add 1 before"
        )
        with pytest.raises(ConfigError, match=told):
            life.train(first)


def test_numbers_that_continue_are_right(url):
    with Life(url) as life:
        assert warned(lambda: life.train(11, 12, 13, 14)) == []


def test_numbers_that_jump_after_a_resume_are_told(url):
    with Life(url) as life:
        [told] = warned(lambda: life.train(13, 14, 15, 16))
    assert "the first step after a resume from step 10 was after_step(13)" in told


def test_numbers_that_are_not_evenly_spaced_may_jump(url):
    """As the samples that an environment yields."""
    with Life(url) as life:
        assert warned(lambda: life.train(13, 19, 21, 30)) == []


def test_numbers_that_begin_again_in_the_next_epoch_are_an_error(tmp_path):
    with Life(f"file://{tmp_path}/run") as life, pytest.raises(ConfigError, match="must go up over all epochs"):
        life.train(1, 2, 3, 1)


def test_a_number_twice_is_told_once(tmp_path):
    with Life(f"file://{tmp_path}/run") as life:
        [told] = warned(lambda: life.train(1, 1, 2, 2))
    assert "after_step(1) was called twice" in told


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_micro_batches_that_are_reported_as_steps_are_told(tmp_path, accumulate):
    with Life(f"file://{tmp_path}/run") as life:

        def run():
            for number in range(1, guard.CALLS_TO_COMPARE + 2):
                life.model(torch.ones(1, 2)).sum().backward()
                if number % accumulate == 0:
                    life.optimizer.step()
                life.session.after_step(number)

        told = warned(run)
    assert ["optimizers made" in each for each in told] == [True] * (accumulate > 1)


@pytest.mark.parametrize("resumes", [True, False])
def test_steps_that_are_never_reported_are_told(tmp_path, resumes, monkeypatch):
    monkeypatch.setattr(guard, "_program_reports", lambda: False)  # this file does
    life = Life(f"file://{tmp_path}/run")
    try:
        life.session.open()
        if resumes:
            life.session.resume()
        [told] = warned(lambda: [life.step() for _ in range(10)])
    finally:
        life.session.close()
    assert told.startswith("3 optimizer steps, and session.")
    assert "was not called: nothing is saved, and a notice is not obeyed" in told
    assert ("resume() and after_step" in told) is not resumes


def test_a_program_that_will_report_is_given_time(tmp_path):
    """As one that makes many steps of its optimizers for each one that it reports."""
    with Life(f"file://{tmp_path}/run") as life:
        assert warned(lambda: [life.step() for _ in range(100)] and life.session.after_step(1)) == []
