"""The callback in a trainer of this process: settings, order, refusals, and what fit() does around it."""

from __future__ import annotations

import signal
import threading
from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import TensorDataset

from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError, UnsafeStateError
from spot_plugins.events import Committed
from spot_plugins.lightning import SpotCheckpoint

STEPS = Counter()  # of this process, by module; an attribute of the module would continue after a resume


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    @property
    def num_steps(self):
        return STEPS[self]

    def training_step(self, batch, batch_idx):
        STEPS[self] += 1
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return elastic_loader(TensorDataset(torch.arange(48.0).view(12, 4)), batch_size=2, seed=3)

    def val_dataloader(self):
        return elastic_loader(TensorDataset(torch.ones(4, 4)), batch_size=2, shuffle=False)


def trainer(folder, *callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **(quiet | {"max_epochs": 2} | settings)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "every_steps=None and every_seconds=None"),
        ({"every_steps": 0}, "every_steps=0 must be at least 1"),
        ({"every_seconds": -1.0}, "every_seconds=-1.0 must be above 0"),
        ({"every_steps": 5, "keep_last": 0}, "keep_last=0 must be at least 1"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_when_it_is_given(settings, message):
    """The message names the field and its value, before there is a trainer."""
    with pytest.raises(ConfigError, match=message):
        SpotCheckpoint("/data/run", **settings)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket/run", "has the unknown scheme 'nonsense'"),
        ("/dev/null/run", "cannot be used: cannot put an object: a part of the path is a file, not a directory"),
        (
            "memory://run",
            "url='memory://run' would be lost with this process. Give a directory, such as file:///data/run",
        ),
    ],
    ids=["scheme", "file", "memory"],
)
def test_a_url_that_cannot_work_is_refused_before_the_first_step(url, message, tmp_path):
    """Nothing is trained for a place where nothing can be saved."""
    module = Net()

    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, SpotCheckpoint(url, every_steps=5)).fit(module)

    assert module.num_steps == 0


def test_a_strategy_that_shards_is_refused(tmp_path, monkeypatch):
    """Saving a shard as if it were the whole would be silent loss."""
    fit = trainer(tmp_path, SpotCheckpoint(str(tmp_path / "run"), every_steps=5))
    # A real one needs the deepspeed package.
    monkeypatch.setattr(fit.strategy, "__class__", DeepSpeedStrategy)

    with pytest.raises(ConfigError, match="strategy=DeepSpeedStrategy keeps its state where it cannot be saved from"):
        fit.callbacks[0].setup(fit, Net(), "fit")


class Odd(Callback):
    """Has state that only pickle could hold."""

    def state_dict(self):
        return {"chosen": lambda: None}


def test_state_without_a_safe_form_is_refused_before_the_first_step(tmp_path):
    """The error names the place of the state, at the start and not at the first save."""
    module = Net()

    with pytest.raises(UnsafeStateError, match=r"callbacks/Odd/chosen"):
        trainer(tmp_path, SpotCheckpoint(str(tmp_path / "run"), every_steps=5), Odd()).fit(module)

    assert module.num_steps == 0


def test_it_comes_behind_all_other_callbacks(tmp_path):
    """It saves the state that the others have left, at any place in the list."""
    spot = SpotCheckpoint(str(tmp_path / "run"), every_steps=5)
    fit = trainer(tmp_path, spot, ModelCheckpoint(tmp_path / "best"), max_epochs=1, enable_checkpointing=True)

    fit.fit(Net())

    assert fit.callbacks[-1] is spot


def test_a_finished_training_is_not_trained_again_but_may_be_prolonged(tmp_path):
    """The same command returns at once with the trained weights; with more epochs it trains only those."""
    url = str(tmp_path / "run")
    first = Net()
    trainer(tmp_path, SpotCheckpoint(url, every_steps=5)).fit(first)

    again = Net()
    trainer(tmp_path, SpotCheckpoint(url, every_steps=5)).fit(again)
    longer = Net()
    trainer(tmp_path, SpotCheckpoint(url, every_steps=5), max_epochs=3).fit(longer)
    at_once = Net()
    trainer(tmp_path, SpotCheckpoint(str(tmp_path / "other"), every_steps=5), max_epochs=3).fit(at_once)

    assert again.num_steps == 0
    assert torch.equal(again.layer.weight, first.layer.weight)
    assert longer.num_steps == 6
    assert torch.equal(longer.layer.weight, at_once.layer.weight)


class LateRestore(SingleDeviceStrategy):
    """Lets Lightning load a ckpt_path after on_fit_start, as sharding strategies do."""

    restore_checkpoint_after_setup = True


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, LateRestore])
def test_a_newer_checkpoint_wins_over_ckpt_path(strategy, tmp_path, caplog):
    """
    A ckpt_path is where a run begins; once preempted, the same command goes on behind its newest step.

    A warning says that the ckpt_path is not used, and Lightning does not claim to have restored it.
    """
    begin = trainer(tmp_path, max_epochs=1)
    begin.fit(Net())
    begin.save_checkpoint(tmp_path / "begin.ckpt")
    url = str(tmp_path / "run")
    reference = Net()
    trainer(tmp_path).fit(reference, ckpt_path=tmp_path / "begin.ckpt")

    committed = threading.Event()

    class Leave(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                assert committed.wait(300)
                raise KeyError("the machine is gone")

    spot = SpotCheckpoint(
        url, every_steps=2, on_event=[lambda e: committed.set() if isinstance(e, Committed) else None]
    )
    with pytest.raises(KeyError):
        trainer(tmp_path, spot, Leave()).fit(Net(), ckpt_path=tmp_path / "begin.ckpt")
    resumed = Net()
    spot = SpotCheckpoint(url, every_steps=2)
    caplog.clear()
    with pytest.warns(
        UserWarning, match=r"ckpt_path='.*begin\.ckpt' is not used: the run at .*run.*its step"
    ) as warned:
        trainer(tmp_path, spot, strategy=strategy(device="cpu")).fit(resumed, ckpt_path=tmp_path / "begin.ckpt")

    (message,) = [str(warning.message) for warning in warned if "ckpt_path" in str(warning.message)]
    assert f"the run at {url} has" in message
    assert f"its step {spot.resumed_from}." in message
    assert spot.resumed_from > 6
    assert "Restored all states" not in caplog.text
    assert resumed.num_steps < 6
    assert torch.equal(resumed.layer.weight, reference.layer.weight)


def test_a_ckpt_path_is_used_again_in_the_next_fit_of_the_trainer(tmp_path):
    """Only the fit that has resumed ignores it."""
    url = str(tmp_path / "run")
    begin = trainer(tmp_path, max_epochs=1)
    begin.fit(Net())
    begin.save_checkpoint(tmp_path / "begin.ckpt")
    trainer(tmp_path, SpotCheckpoint(url, every_steps=100)).fit(Net())
    spot = SpotCheckpoint(url, every_steps=100)
    again = trainer(tmp_path, spot)
    with pytest.warns(UserWarning, match="is not used"):
        again.fit(Net(), ckpt_path=tmp_path / "begin.ckpt")
    again.callbacks.remove(spot)
    module = Net()
    again.fit(module, ckpt_path=tmp_path / "begin.ckpt")

    assert module.num_steps == 6


def test_it_knows_the_last_committed_step_and_the_one_it_resumed_from(tmp_path):
    """During fit() and after it; both are None where there is nothing to say."""
    url = str(tmp_path / "run")
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append((spot.last_committed_step, spot.resumed_from))

    spot = SpotCheckpoint(url, every_steps=5)
    assert (spot.last_committed_step, spot.resumed_from) == (None, None)
    trainer(tmp_path, spot, Look()).fit(Net())
    assert (spot.last_committed_step, spot.resumed_from) == (12, None)

    spot = SpotCheckpoint(url, every_steps=5)
    trainer(tmp_path, spot, Look(), max_epochs=3).fit(Net())
    assert (spot.last_committed_step, spot.resumed_from) == (18, 12)
    assert seen == [(None, None), (None, 12)]


def test_the_programs_own_handler_comes_back(tmp_path):
    """After a fit that ended or failed, SIGTERM does again what the program wants."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))

    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise KeyError("a bug")

    try:
        trainer(tmp_path, SpotCheckpoint(str(tmp_path / "a"), every_steps=5)).fit(Net())
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyError):
            trainer(tmp_path, SpotCheckpoint(str(tmp_path / "b"), every_steps=5), Fail()).fit(Net())
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert heard == [1, 1]


def test_validate_and_test_take_no_part(tmp_path):
    """The callback belongs to fit; elsewhere it opens nothing."""
    fit = trainer(tmp_path, SpotCheckpoint(str(tmp_path / "run"), every_steps=5))

    fit.validate(Net(), verbose=False)

    assert not (tmp_path / "run").exists()
