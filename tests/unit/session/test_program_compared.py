"""A session compares the program with the one that saved the step, before it restores anything."""

from __future__ import annotations

import logging
import os
import re
import signal

import pytest
import torch
from hearing import until
from torch import nn

from spot_plugins import SpotConfig, SpotSession
from spot_plugins.errors import ConfigError, IncompatibleCheckpointError, Preempted
from spot_plugins.store import check_writable, open_store


class Training:
    """One attempt of a small training at *url*."""

    def __init__(self, url, *, kind=torch.optim.SGD, step_size=2, **settings):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = kind(self.model.parameters(), **{"lr": 0.1, **settings})
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size)
        self.session = SpotSession(SpotConfig(url=url, every_steps=100, notice_sources=()))

    def run(self, steps=2):
        with self.session as session:
            session.register_model(self.model, [self.optimizer], [self.scheduler])
            step = session.resume() or 0
            while step < steps:
                self.model(torch.ones(1, 2)).sum().backward()
                self.optimizer.step()
                self.scheduler.step()
                step += 1
                session.after_step(step)
            session.finish(step)


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "spot_plugins.run"]


def test_the_same_program_is_told_no_difference(url, caplog):
    """Nothing is named that is equal."""
    Training(url).run()
    caplog.clear()

    Training(url).run(4)

    assert not any(record.levelno >= logging.WARNING for record in caplog.records)


def test_another_optimizer_is_refused_before_anything_is_restored(url):
    """The sentence names both and the remedy; the model is as the program has made it."""
    Training(url).run()
    other = Training(url, kind=torch.optim.Adam)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}

    with pytest.raises(IncompatibleCheckpointError, match=r"optimizer-0 is Adam now, and was SGD .* another URL"):
        other.run(4)

    assert all(torch.equal(before[name], value) for name, value in other.model.state_dict().items())


def test_settings_that_the_state_overrides_are_named_at_every_start(url, caplog):
    """The sentence is true: the optimizer has the checkpoint's rate. The third attempt is told the same value."""
    Training(url).run()
    for steps in (4, 6):
        caplog.clear()
        changed = Training(url, lr=0.5, step_size=3)
        changed.run(steps)

        assert "the checkpoint's lr=0.1 is used, not lr=0.5" in said(caplog)
        assert "the checkpoint's step_size=2 is used, not step_size=3" in said(caplog)
        assert changed.optimizer.param_groups[0]["initial_lr"] == 0.1
        assert changed.scheduler.step_size == 2


def test_a_program_at_the_url_of_a_finished_one_is_told(url, caplog):
    """Another fold at the same URL trains nothing, and a line says so and what to do."""
    Training(url).run()
    caplog.clear()

    Training(url).run()

    assert "this training is finished at step 2; use another URL to train again" in said(caplog)


def test_the_name_of_the_facts_is_taken(url):
    """A part of the user has another name."""
    with (
        Training(url).session as session,
        pytest.raises(ValueError, match="'program' is the name of this package's own part"),
    ):
        session.register("program", nn.Linear(1, 1))


def test_a_signal_between_the_start_and_the_resume_is_answered(url, caplog):
    """It is obeyed after the first step, and the line says that. Without a step it is obeyed when the session ends."""
    config = SpotConfig(url=url, every_steps=100, notice_sources=())
    with pytest.raises(Preempted), SpotSession(config) as session:  # noqa: PT012 - the end of the block raises
        session.handle_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: session.notice, "the notice arrives")

    assert re.search(r"^SIGTERM: leaving after the first step, \d+ s left$", "\n".join(said(caplog)), re.MULTILINE)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        (
            "s3://bucket/run",
            {"endpont_url": "http://x"},
            "'endpont_url', which S3FileSystem for s3:// does not know. Did you mean 'endpoint_url'",
        ),
        ("/data/run", {"key": "secret"}, r"storage_options={'key': \*\*\*} .* a directory takes none"),
    ],
)
def test_a_storage_option_that_nothing_knows_is_refused(url, options, message):
    """The name is in the message, the value is not."""
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url, options)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["hf://datasets/a/b", "dir://somewhere/run", "jupyter://host/run", "zip:///tmp/run"])
def test_a_file_system_that_cannot_hold_a_run_is_refused(url):
    """It is a ConfigError, because trying later will not help."""
    with pytest.raises(
        ConfigError,
        match=r"cannot hold a run: .*Give a URL such as .*, or the storage_options that it needs|cannot be used",
    ):
        check_writable(open_store(url))
