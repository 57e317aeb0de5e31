"""Trainings of both hosts that die between two saves: steps that are trained again in another way are named."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hearing import Heard, until_pushers_end
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.events import Committed, Resumed, StepDiffers
from spot_plugins.fingerprints import compare_runs
from spot_plugins.lightning import SpotCheckpoint

SAVED, CHANGED, DIED, NUM_STEPS = 5, 7, 9, 12
DATA = TensorDataset(torch.arange(48.0).view(24, 2) / 48)


class DiedError(Exception):
    """Ends a training without a notice."""


def loader_of(kind, change):
    batch_size = 3 if change == "batch size" else 2
    if kind == "elastic":
        return elastic_loader(DATA, batch_size=batch_size, seed=3)
    return DataLoader(DATA, batch_size=batch_size, shuffle=True)


class Net(LightningModule):
    def __init__(self, kind, change, die_at, heard):
        super().__init__()
        self.kind, self.change, self.die_at, self.heard = kind, change, die_at, heard
        self.layer = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        if self.die_at is not None and step == SAVED:
            self.heard.wait(Committed, step=SAVED)
        if step == self.die_at:
            raise DiedError
        if self.change == "draw" and step == CHANGED - 1:
            torch.rand(1)
        if self.change == "rates" and step == CHANGED - 1:
            self.optimizers().param_groups[0]["weight_decay"] = 0.5
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return loader_of(self.kind, self.change)


def lightning(folder, kind="elastic", change=None, die_at=None, accumulate=1):
    """Run one life. Return its events."""
    torch.manual_seed(1)
    heard = Heard()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    spot = SpotCheckpoint(
        str(folder / "run"), every_steps=SAVED, local_dir=str(folder / "local"), notice_sources=(), on_event=heard
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=NUM_STEPS,
        callbacks=[spot],
        accumulate_grad_batches=2 if change == "accumulation" else accumulate,
        **quiet,
    )
    trainer.fit(Net(kind, change, die_at, heard))
    return heard


def accelerate(folder, kind="elastic", change=None, die_at=None, accumulate=1):
    """Run one life. Return its events."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    torch.manual_seed(1)
    heard = Heard()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2 if change == "accumulation" else accumulate)
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    settings = {"every_steps": SAVED, "local_dir": str(folder / "local"), "notice_sources": (), "on_event": heard}
    with SpotHook(accelerator, str(folder / "run"), **settings) as spot:
        net, optimizer, loader = accelerator.prepare(net, optimizer, loader_of(kind, change))
        spot.resume()
        for _ in spot.epochs(max_steps=NUM_STEPS):
            for batch in spot.batches(loader):
                with accelerator.accumulate(net):
                    if change == "draw" and spot.progress.step == CHANGED - 1:
                        torch.rand(1)
                    if change == "rates" and spot.progress.step == CHANGED - 1:
                        optimizer.param_groups[0]["weight_decay"] = 0.5
                    accelerator.backward(net(batch[0]).square().mean())
                    optimizer.step()
                    optimizer.zero_grad()
                spot.after_step()
                step = spot.progress.step
                if die_at is not None and step == SAVED and accelerator.sync_gradients:
                    heard.wait(Committed, step=SAVED)
                if step == die_at:
                    raise DiedError
        assert spot.progress.step == NUM_STEPS
    return heard


each_host = pytest.mark.parametrize("life", [lightning, accelerate], ids=lambda life: life.__name__)

# What the second life does in another way, the first step that differs, and the kinds that differ there. Dropout
# draws from torch's stream once per batch. With two batches per step, Lightning ends step 6 with its first batch in
# both lives, because it counts the batches of the epoch. Accelerate begins to count anew.
CHANGES = {
    "draw": (CHANGED, ("torch",)),
    "rates": (CHANGED, ("rates",)),
    "batch size": (SAVED + 1, ("data", "torch")),
    "accumulation": (SAVED + 1, ("data", "accumulation", "torch")),
}


@pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["elastic", "plain"])
@each_host
def test_a_clean_replay_is_the_same(life, kind, accumulate, tmp_path):
    """Nothing is said, and every step looks as in a training that was never interrupted."""
    with pytest.raises(DiedError):
        life(tmp_path, kind, die_at=DIED, accumulate=accumulate)
    until_pushers_end()  # before that they may not have written the last fingerprints
    heard = life(tmp_path, kind, accumulate=accumulate)
    life(tmp_path / "control", kind, accumulate=accumulate)

    assert [event.step for event in heard.of(Resumed)] == [SAVED]
    assert heard.of(StepDiffers) == []
    assert compare_runs(str(tmp_path / "run"), str(tmp_path / "control" / "run")) == []


@pytest.mark.parametrize("change", CHANGES)
@each_host
def test_a_changed_program_is_named(life, change, tmp_path):
    """The first step that differs, and the kinds in which it does."""
    with pytest.raises(DiedError):
        life(tmp_path, die_at=DIED)
    until_pushers_end()  # before that they may not have written the last fingerprints
    heard = life(tmp_path, change=change)

    step, what = CHANGES[change]
    assert heard.of(StepDiffers) == [StepDiffers(step=step, attempt=1, what=what)]
