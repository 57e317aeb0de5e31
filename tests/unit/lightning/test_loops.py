"""The batches of an optimizer step, where a run of two ranks is continued on one."""

from __future__ import annotations

import shutil

import pytest
from golden.hosts import Module
from golden.make import DATA
from golden.training import EPOCHS, SETTINGS
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from spot_plugins.lightning import SpotCheckpoint


class ByHand(Module):
    """Calls the optimizer itself."""

    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


def fit(folder, module=Module, *callbacks):
    """Continue on one rank what two ranks have stored."""
    shutil.copytree(DATA / "lightning-ddp", folder / "run")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    spot = SpotCheckpoint(f"file://{folder}/run", every_steps=100, **SETTINGS)
    callbacks = [EarlyStopping("validated", patience=9), spot, *callbacks]
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, max_epochs=EPOCHS, num_sanity_val_steps=0, **quiet)
    trainer.fit(module(None, False, 1))
    return trainer


def test_accumulation_makes_up_for_a_rank(tmp_path, caplog):
    trainer = fit(tmp_path)

    told = "accumulate_grad_batches=2 on 1 ranks: an optimizer step is made of 2 batches, as before"
    assert told in caplog.text
    assert trainer.accumulate_grad_batches == 2


@pytest.mark.parametrize(
    ("module", "callbacks", "obstacle"),
    [
        (ByHand, (), "the module optimizes by hand"),
        (Module, (GradientAccumulationScheduler({0: 1}),), "a GradientAccumulationScheduler decides"),
    ],
    ids=["by hand", "schedule"],
)
def test_an_obstacle_to_accumulation_is_named(module, callbacks, obstacle, tmp_path):
    told = f"an optimizer step is made of 1 batches now instead of 2: {obstacle}"
    with pytest.warns(UserWarning, match=told):
        trainer = fit(tmp_path, module, *callbacks)

    assert trainer.accumulate_grad_batches == 1
