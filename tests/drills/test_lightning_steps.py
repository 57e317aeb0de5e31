"""Steps that Lightning does not count, pauses without a step, and fits after a fit."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hearing import until
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning_lives import Interrupt, Lives, Net, data, make_trainer

from spot_plugins.data import elastic_loader
from spot_plugins.errors import ConfigError, Preempted
from spot_plugins.lightning import SpotCheckpoint

pytestmark = pytest.mark.sampled


class Manual(Net):
    """Steps its plain optimizer, of which Lightning knows nothing."""

    def __init__(self, trace):
        super().__init__(trace)
        self.automatic_optimization = False
        self.extra = torch.nn.Parameter(torch.zeros(4))

    def training_step(self, batch, batch_idx):
        x, y, number = batch
        loss = (self(x) + x @ self.extra - y).square().mean()
        self.record(number, loss)
        self.manual_backward(loss)
        self.update(batch_idx)

    def update(self, batch_idx):
        self.opt.step()
        self.opt.zero_grad()

    def configure_optimizers(self):
        self.opt = torch.optim.Adam(self.parameters(), lr=0.05)
        return self.opt


class Own(Manual):
    """Has an optimizer that it does not return."""

    def __init__(self, trace):
        super().__init__(trace)
        self.opt = torch.optim.Adam(self.parameters(), lr=0.05)

    def configure_optimizers(self):
        return None


class EveryFourth(Manual):
    """One optimizer steps in every batch, the other collects gradients over three."""

    def update(self, batch_idx):
        first, second = self.optimizers() if self.counts else (each.optimizer for each in self.optimizers())
        first.step()
        first.zero_grad()
        if batch_idx % 3 == 2:
            second.step()
            second.zero_grad()

    counts = True

    def configure_optimizers(self):
        return torch.optim.Adam(self.layer.parameters(), lr=0.05), torch.optim.SGD([self.extra], lr=0.1, momentum=0.9)


class EveryFourthPlain(EveryFourth):
    counts = False


class WithoutOptimizer(Manual):
    """Changes its weights itself."""

    def update(self, batch_idx):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter -= 0.05 * parameter.grad
        self.zero_grad()

    def configure_optimizers(self):
        return None


class Closure(Manual):
    def training_step(self, batch, batch_idx):
        def closure():
            loss = self.compute(batch)
            self.opt.zero_grad()
            self.manual_backward(loss)
            return loss

        self.opt.step(closure)

    def configure_optimizers(self):
        self.opt = torch.optim.LBFGS(self.layer.parameters(), lr=0.1, max_iter=3)
        return self.opt


class SkipsSteps(Net):
    """Gives no loss for every third batch."""

    def training_step(self, batch, batch_idx):
        loss = self.compute(batch)
        return loss if batch_idx % 3 else None


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize("how", ["notice", "kill"])
@pytest.mark.parametrize("net", [Manual, Own, EveryFourth, EveryFourthPlain, Closure, SkipsSteps])
def test_steps_of_every_kind_are_saved_and_a_notice_is_obeyed(net, how, tmp_path):
    """Within the next batches, and nothing that an optimizer has collected is lost."""
    lives = Lives(tmp_path, lambda trace: (net(trace), []), every_steps=3)
    lives.compare((13, how))
    trace, _, _ = lives.run("other", Interrupt(13, "notice"))
    assert len(trace) <= 15


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_training_without_any_optimizer_is_saved_too(tmp_path):
    """After a few batches, in which no optimizer has stepped, every batch counts as a step."""
    lives = Lives(tmp_path, lambda trace: (WithoutOptimizer(trace), []), every_steps=3)
    lives.compare((19, "notice"))


class Validated(Net):
    """Sends the notice from its validation at a chosen batch."""

    at = None

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            return
        counts = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1, batch_idx
        NOTED.append(counts)
        if counts == self.at:
            _give_notice(self.trainer)
        self.log("val_loss", self(batch[0]).mean())

    def val_dataloader(self):
        return elastic_loader(data(20), batch_size=5, shuffle=False)


NOTED = []


def _give_notice(trainer):
    """Send SIGTERM, and wait until it is known: the batches of these validations take less time than that."""
    os.kill(os.getpid(), signal.SIGTERM)
    (spot,) = (callback for callback in trainer.callbacks if isinstance(callback, SpotCheckpoint))
    until(lambda: spot._fit.session.notice is not None, "the notice is known")


@pytest.mark.parametrize("at", [6, 12])
def test_a_notice_in_a_validation_within_an_accumulation_is_obeyed_at_once(at, tmp_path):
    """It leaves at the next batch of the validation, with the last step that was complete."""
    settings = {"accumulate_grad_batches": 4, "val_check_interval": 6, "check_val_every_n_epoch": None}

    def make(trace):
        return Validated(trace), []

    lives = Lives(tmp_path, make, **settings)
    NOTED.clear()
    Validated.at = (at, 0)
    spot = SpotCheckpoint(str(tmp_path / "run"), every_steps=100, grace_seconds=20)
    trace = {}
    torch.manual_seed(1)
    try:
        with pytest.raises(Preempted) as left:
            make_trainer(tmp_path, spot, **settings).fit(Validated(trace))
    finally:
        Validated.at = None
    assert NOTED[-1] == (at, 0)
    assert left.value.step == at // 4
    resumed, _, _ = lives.run("run")
    expected, _, _ = lives.run("control")
    assert {**trace, **resumed} == expected
    assert len(resumed) == 24 - 4 * (at // 4)


def test_a_notice_in_the_sanity_check_is_obeyed_there(tmp_path):
    """Also before the first step there is nothing to wait for."""

    class Sanity(Validated):
        def validation_step(self, batch, batch_idx):
            if self.trainer.sanity_checking:
                seen.append(batch_idx)
                if is_first and batch_idx == 0:
                    _give_notice(self.trainer)

    seen, is_first = [], True
    lives = Lives(tmp_path, lambda trace: (Sanity(trace), []), num_sanity_val_steps=-1)
    spot = SpotCheckpoint(str(tmp_path / "run"), every_steps=100, grace_seconds=20)
    torch.manual_seed(1)
    with pytest.raises(Preempted):
        make_trainer(tmp_path, spot, num_sanity_val_steps=-1).fit(Sanity({}))
    assert seen == [0]
    is_first = False
    assert lives.run("run")[0] == lives.run("control")[0]


def test_a_second_fit_of_a_trainer_that_was_preempted_in_the_first_trains(tmp_path):
    """Lightning's loops remember the first fit, and that must not end the epochs of the second one."""

    def fit_twice(url, interrupt=None):
        torch.manual_seed(1)
        trace = {}
        module = Validated(trace)
        spot = SpotCheckpoint(str(tmp_path / url), every_steps=4, grace_seconds=20)
        trainer = make_trainer(tmp_path, *([interrupt] if interrupt else []), spot, max_epochs=2)
        trainer.fit(module)
        trainer.fit_loop.max_epochs = 4
        trainer.fit(module)
        return trace, module

    with pytest.raises(Preempted):
        fit_twice("run", Interrupt(5, "notice"))
    trace, module = fit_twice("run")
    expected, control = fit_twice("control")

    assert trace.items() <= expected.items()
    assert len(trace) == 32 - 5
    assert torch.equal(module.layer.weight, control.layer.weight)


def test_two_callbacks_are_refused(tmp_path):
    """One training has one run."""
    spots = [SpotCheckpoint(str(tmp_path / name), every_steps=4) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="more than one SpotCheckpoint"):
        make_trainer(tmp_path, *spots).fit(Net({}))
    with pytest.raises(ConfigError, match="more than one SpotCheckpoint"):
        make_trainer(tmp_path, spots[0], spots[0]).fit(Net({}))


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_the_other_package_of_the_same_names_is_named(tmp_path):
    """For a trainer and for a callback of it."""
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

        def train_dataloader(self):
            return elastic_loader(data(), batch_size=5)

    spot = SpotCheckpoint(str(tmp_path / "run"), every_steps=4)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    with pytest.raises(ConfigError, match="two packages"):
        other.Trainer(accelerator="cpu", max_epochs=1, callbacks=[spot], **quiet).fit(Module())
    stopping = other.callbacks.EarlyStopping("val_loss")
    with pytest.raises(ConfigError, match=r"EarlyStopping comes from the package pytorch_lightning"):
        make_trainer(tmp_path, spot, stopping).fit(Net({}))


class Touches(Callback):
    """Reads, changes and adds keys of a checkpoint, as code that is right under Lightning."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        assert checkpoint["loops"]["fit_loop"]
        assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) + 1 == 1
        assert "Touches" not in checkpoint["callbacks"]
        assert checkpoint["pytorch-lightning_version"].startswith("2.")
        checkpoint["hyper_parameters"]["added"] = trainer.global_step
        checkpoint["all"] = sorted(dict(checkpoint))
        del checkpoint["optimizer_states"]

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        LOADED.append((checkpoint["hyper_parameters"]["added"], checkpoint["all"], len(checkpoint["optimizer_states"])))


LOADED = []


def test_hooks_find_the_usual_keys_of_a_checkpoint(tmp_path):
    """They are filled when they are read, and what a hook changes in them is there for the hook that loads."""

    class Hyper(Net):
        def __init__(self, trace, size=3):
            super().__init__(trace)
            self.save_hyperparameters("size")

    LOADED.clear()
    Lives(tmp_path, lambda trace: (Hyper(trace), [Touches()])).compare((13, "notice"))

    (added, keys, num_optimizers), *_ = LOADED
    assert added == 13
    assert {"callbacks", "epoch", "global_step", "hparams_name", "hyper_parameters", "loops", "lr_schedulers"} <= {
        *keys
    }
    assert num_optimizers == 1


def test_hyperparameters_and_arrays_of_strings_are_saved(tmp_path):
    """As they are: a dict with attributes, and an array of strings."""
    import numpy as np

    class Saves(Net):
        def __init__(self, trace, size=3, name="a"):
            super().__init__(trace)
            self.save_hyperparameters("size", "name")

        def on_save_checkpoint(self, checkpoint):
            checkpoint["hparams"] = self.hparams
            checkpoint["names"] = np.array([["a", "bcd"], ["é", ""]])
            checkpoint["raw"] = np.array([b"a", b"\xff\x01"])

        def on_load_checkpoint(self, checkpoint):
            loaded.append((checkpoint["hparams"], checkpoint["names"], checkpoint["raw"]))

    loaded = []
    Lives(tmp_path, lambda trace: (Saves(trace), [])).compare((13, "notice"))
    hparams, names, raw = loaded[0]
    assert (type(hparams).__name__, hparams.size, hparams.name) == ("AttributeDict", 3, "a")
    assert names.dtype == "<U3"
    assert names.tolist() == [["a", "bcd"], ["é", ""]]
    assert raw.tolist() == [b"a", b"\xff\x01"]


class Stops(Validated):
    """Logs a validation loss that never becomes better."""

    def on_validation_epoch_end(self):
        self.log("worse", float(self.global_step))


ENDINGS = {
    "max_steps in an epoch": ({"max_steps": 13, "max_epochs": -1}, {"max_steps": 24}, None, None),
    "max_steps at its end": ({"max_steps": 16, "max_epochs": -1}, {"max_steps": 24}, None, None),
    "max_epochs": ({"max_epochs": 2}, {"max_epochs": 3}, None, None),
    "patience": ({"max_epochs": 3}, {"max_epochs": 3}, 1, 9),
    "patience within an epoch": (
        {"max_epochs": 3, "val_check_interval": 3},
        {"max_epochs": 3, "val_check_interval": 3},
        2,
        99,
    ),
}


@pytest.mark.parametrize("every_steps", [100, 4])
@pytest.mark.parametrize(("before", "after", "patience", "more_patience"), ENDINGS.values(), ids=ENDINGS)
def test_an_ended_training_continues_as_a_longer_one_would_have_gone(
    before, after, patience, more_patience, every_steps, tmp_path
):
    """After the same sample, with the same weights, if a setting that has ended it is changed."""

    def make(patience):
        def module_and_callbacks(trace):
            stopping = (
                [] if patience is None else [EarlyStopping("worse", patience=patience, check_on_train_epoch_end=False)]
            )
            return Stops(trace), stopping

        return module_and_callbacks

    first, module, _ = Lives(tmp_path, make(patience), every_steps, **before).run("run")
    again, same, _ = Lives(tmp_path, make(patience), every_steps, **before).run("run")
    longer, continued, _ = Lives(tmp_path, make(more_patience), every_steps, **after).run("run")
    expected, control, _ = Lives(tmp_path, make(more_patience), every_steps, **after).run("control")

    assert again == {}
    assert torch.equal(same.layer.weight, module.layer.weight)
    assert len(longer) == len(expected) - len(first)
    assert {**first, **longer} == expected
    assert torch.equal(continued.layer.weight, control.layer.weight)


def test_a_training_that_ran_out_of_time_continues_with_more(tmp_path, caplog):
    """With the batch after the last one."""

    class OutOfTime(Timer):
        def on_train_batch_end(self, trainer, *args, **kwargs):
            if trainer.global_step == 13 and self.time_remaining() < 4000:
                trainer.should_stop = True

    def lives(hours):
        return Lives(tmp_path, lambda trace: (Net(trace), [OutOfTime(f"00:0{hours}:00:00")]))

    first, _, _ = lives(1).run("run")
    again, _, _ = lives(1).run("run")
    told = "the training was told to stop before, by EarlyStopping, max_time or the program; training "
    assert f"{told}ends at once. It continues if max_epochs, max_steps, max_time, " in caplog.text
    longer, continued, _ = lives(2).run("run")
    assert f"{told}continues. It continues if " in caplog.text
    expected, control, _ = lives(2).run("control")

    assert (len(first), len(again)) == (13, 0)
    assert {**first, **longer} == expected
    assert len(longer) == 11
    assert torch.equal(continued.layer.weight, control.layer.weight)
