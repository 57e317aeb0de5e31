"""
One rank of a training that another one has begun: from its file, in a run of this package or without it.

Run by test_moving_runs.py. It writes its state at the end to ``state-RANK`` in its folder.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from documented import block_of
from golden.training import SETTINGS, draw, optimizer_of, plain, samples, scheduler_of, seed_streams, small_model
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainingArguments

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.state import RngPart
from spot_plugins.transformers import SpotTrainerCallback

SPOT = {"every_steps": 1000, **SETTINGS}


def load_old(words, **values):
    """Run the block of the page that has *words*, in the folder with the old file."""
    exec(block_of("docs/commands/import.md", words).text, values)


class Net(nn.Module):
    """Draws from the random streams, if they are part of what moves."""

    def __init__(self, draws=True):
        super().__init__()
        self.layer = small_model()
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.draws = draws

    def forward(self, x):
        self.drawn += draw() if self.draws else 1
        return {"loss": self.layer(x).square().mean() / 1024}


def accelerate(url, is_new, world_size):
    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = optimizer_of(model)
    loader = elastic_loader(samples(), batch_size=2 // world_size, seed=5)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler_of(optimizer))
    if not is_new:
        load_old("accelerator.load_state", accelerator=accelerator)

    def train_on(batch):
        accelerator.backward(model(batch)["loss"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    if url is None:
        for batch in loader:
            train_on(batch)
        accelerator.save_state("saved")
    else:
        with SpotHook(accelerator, url, **SPOT) as spot:
            spot.resume()
            for _ in spot.epochs(1):
                for batch in spot.batches(loader):
                    train_on(batch)
                    spot.after_step()
    return accelerator.unwrap_model(model), optimizer, scheduler


class Module(LightningModule):
    def __init__(self, world_size):
        super().__init__()
        self.net = Net()
        self.world_size = world_size

    def training_step(self, batch):
        return self.net(batch)["loss"]

    def configure_optimizers(self):
        optimizer = optimizer_of(self.net)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler_of(optimizer), "interval": "step"}}

    def train_dataloader(self):
        return elastic_loader(samples(), batch_size=2 // self.world_size, seed=5)


def lightning(url, is_new, world_size):
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="auto" if world_size == 1 else "ddp",
        max_epochs=1 if is_new else 2,
        callbacks=[] if url is None else [SpotCheckpoint(url, **SPOT)],
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    module = Module(world_size)
    if is_new:
        trainer.fit(module)
    else:
        load_old("trainer.fit", trainer=trainer, model=module)
    if url is None:
        trainer.save_checkpoint("saved")
    return module, trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler


def transformers(url, is_new, world_size):
    """In a run the loader draws its own seed from the stream of torch, so no other draws are compared."""
    arguments = TrainingArguments(
        "old-output" if is_new else "output",
        num_train_epochs=2,
        max_steps=4 if is_new else -1,
        per_device_train_batch_size=2 // world_size,
        save_strategy="epoch" if is_new else "no",
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",  # a run shuffles in an order of its own
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = HuggingFaceTrainer(
        Net(draws=False),
        arguments,
        train_dataset=[{"x": row} for row in samples()],
        callbacks=[] if url is None else [SpotTrainerCallback(url, **SPOT)],
    )
    if is_new:
        trainer.train()
    else:
        load_old("resume_from_checkpoint", trainer=trainer)
    return trainer.model, trainer.optimizer, trainer.lr_scheduler


def main(host: str, folder: str, url: str | None, is_new: bool, rank: int, world_size: int) -> None:
    """Train one epoch in *folder*, after the old file of it, or the first one if *is_new*."""
    warnings.simplefilter("ignore")
    os.chdir(folder)
    torch.set_num_threads(1)
    seed_streams(rank + (0 if is_new else 5))
    found: Any = {"accelerate": accelerate, "lightning": lightning, "transformers": transformers}[host](
        url, is_new, world_size
    )
    states = [plain(dict(sorted(each.state_dict().items()))) for each in found]
    streams = None if host == "transformers" else plain(RngPart().state_dict())
    Path(f"state-{rank}").write_bytes(pickle.dumps((states, streams)))
