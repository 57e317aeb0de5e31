"""Trainings with Lightning and Accelerate, of one rank or of ranks that are processes."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from golden.training import (
    EPOCHS,
    SETTINGS,
    STEPS_PER_EPOCH,
    STORED,
    Record,
    StoppedError,
    draw,
    optimizer_of,
    plain,
    samples,
    scheduler_of,
    seed_streams,
    small_model,
    wait_stored,
)
from launching import exit_codes, launch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from ports import free_port

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.state import RngPart


class Module(LightningModule):
    """A module that logs, validates and draws from the random streams."""

    def __init__(self, url: str | None, stop: bool, world_size: int) -> None:
        super().__init__()
        self.layer = small_model()
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.records: list[Record] = []
        self._url, self._stop, self._world_size = url, stop, world_size

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step = self.trainer.global_step
        if self._stop and step == STORED:
            assert self._url is not None
            wait_stored(self._url, step, self._world_size)
            raise StoppedError
        self.record(batch)
        self.drawn += draw()
        self.log("first", batch[0, 0], on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validated", batch[0, 0], sync_dist=True, batch_size=len(batch))

    def on_train_end(self) -> None:
        self.record(None)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.layer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler_of(optimizer), "interval": "step"}}

    def train_dataloader(self) -> Any:
        return elastic_loader(samples(), batch_size=2 // self._world_size, seed=5)

    def val_dataloader(self) -> Any:
        return elastic_loader(samples(), batch_size=4 // self._world_size, shuffle=False)

    def record(self, batch: Any) -> None:
        """Remember the present state."""
        trainer = self.trainer
        loops = trainer.fit_loop.state_dict()
        del loops["state_dict"]
        state = {
            "model": dict(self.state_dict()),
            "optimizers": [each.state_dict() for each in trainer.optimizers],
            "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
            "callbacks": [each.state_dict() for each in trainer.callbacks if isinstance(each, EarlyStopping)],
            "metrics": dict(trainer.callback_metrics),
            "loops": loops,
            "epoch": trainer.current_epoch,
            "rng": RngPart().state_dict(),
        }
        self.records.append(Record(step=trainer.global_step, samples=plain(batch), state=plain(state)))


def lightning(url: str | None, stop: bool, rank: int = 0, world_size: int = 1) -> list[Record]:
    """Run one rank of the training of a Lightning module."""
    seed_streams(rank)
    module = Module(url, stop, world_size)
    spot = [] if url is None else [SpotCheckpoint(url, every_steps=STORED, **SETTINGS)]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    callbacks = [EarlyStopping("validated", patience=9), *spot]
    strategy = "auto" if world_size == 1 else "ddp"
    settings = {"devices": world_size, "strategy": strategy, "max_epochs": EPOCHS, "num_sanity_val_steps": 0, **quiet}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, **settings)
    with crash_if(stop):
        trainer.fit(module)
    return module.records


def accelerate(url: str | None, stop: bool, rank: int = 0, world_size: int = 1) -> list[Record]:
    """Run one rank of a training loop with Accelerate."""
    for shared in (AcceleratorState, PartialState, GradientState):
        shared._reset_state()
    accelerator = Accelerator(cpu=True)
    seed_streams(rank)
    model = small_model()
    optimizer = optimizer_of(model)
    loader = elastic_loader(samples(), batch_size=2 // world_size, seed=5)
    prepared = model, optimizer, loader, scheduler_of(optimizer)
    model, optimizer, loader, scheduler = accelerator.prepare(*prepared)
    counts = {"drawn": 0}
    records: list[Record] = []

    def record(step: int, epoch: int, batch: torch.Tensor | None) -> None:
        state = {
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "counts": counts,
            "epoch": epoch,
            "rng": RngPart().state_dict(),
        }
        records.append(Record(step=step, samples=plain(batch), state=plain(state)))

    def train_on(batch: torch.Tensor) -> None:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        counts["drawn"] += draw()

    if url is None:
        for epoch in range(EPOCHS):
            for number, batch in enumerate(loader):
                record(epoch * STEPS_PER_EPOCH + number, epoch, batch)
                train_on(batch)
        record(EPOCHS * STEPS_PER_EPOCH, EPOCHS, None)
        return records
    with crash_if(stop), SpotHook(accelerator, url, every_steps=STORED, **SETTINGS) as spot:
        spot.register("counts", SimpleNamespace(state_dict=lambda: counts, load_state_dict=counts.update))
        spot.resume()
        for epoch in spot.epochs(EPOCHS):
            for batch in spot.batches(loader):
                record(spot.progress.step, epoch, batch)
                train_on(batch)
                spot.after_step()
                if stop and spot.progress.step == STORED:
                    wait_stored(url, STORED, world_size)
                    raise StoppedError
        record(spot.progress.step, spot.progress.epoch, None)
    return records


@contextmanager
def crash_if(stop: bool) -> Iterator[None]:
    """Let :exc:`StoppedError` pass for the end of the training, where it is to stop."""
    try:
        yield
    except StoppedError:
        assert stop
    else:
        assert not stop


def main(name: str, url: str, stop: bool, rank: int, world_size: int, output: str) -> None:
    """Run one rank in a process of its own. *output* is the file for its records."""
    records = {"lightning": lightning, "accelerate": accelerate}[name](url, stop, rank, world_size)
    Path(output).write_bytes(pickle.dumps(records))


def two_processes(name: str, url: str | None, stop: bool) -> list[list[Record]]:
    """Run two processes that train together. Without *url* the checkpoints go where nobody looks for them."""
    # The pusher process may remove old steps for a moment longer than the ranks live.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        url = url or f"file://{folder}/run"
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
        ranks = [
            launch(
                "golden.hosts",
                (name, url, stop, rank, 2, str(folder / f"records-{rank}")),
                environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                output=folder / f"output-{rank}",
            )
            for rank in range(2)
        ]
        codes = exit_codes(ranks)
        assert codes == [0, 0], (codes, [(folder / f"output-{rank}").read_text()[-3000:] for rank in range(2)])
        return [pickle.loads((folder / f"records-{rank}").read_bytes()) for rank in range(2)]
