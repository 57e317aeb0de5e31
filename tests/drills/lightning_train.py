"""
A real Lightning training that can be interrupted at an exact point. Run by test_lightning_exact.py.

It appends what every batch saw to FOLDER/trace-RANK.jsonl, every event to FOLDER/events-RANK.jsonl, and writes the
final state to FOLDER/final-RANK.pt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import warnings
from dataclasses import asdict

import numpy as np
import torch
from interrupting import Interruption
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric

from spot_plugins.data import elastic_loader
from spot_plugins.events import NoticeReceived
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.state import RngPart, encode

FOLDER = ""
SETTINGS = {}
RANK = 0
NUM_RANKS = 1
noticed = threading.Event()
interruption = None


class Points(Dataset):
    """Points with noise from all three random streams, as an augmentation has."""

    def __init__(self, size, name=""):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = torch.randint(0, 3, (size,), generator=generator)
        self.name = name
        self.num_drawn = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.num_drawn += 1
        interruption.reach(self.name, self.num_drawn)
        if not SETTINGS.get("augment", 1):
            return index, self.x[index], self.y[index]
        noise = random.random() + np.random.rand() + torch.rand(6)
        return index, self.x[index] + 0.1 * noise, self.y[index]


class Stream(IterableDataset):
    """The same points without a length, in their order; it remembers where it is, for loaders that ask."""

    def __init__(self, size):
        self.points = Points(size)
        self.next = 0

    def __iter__(self):
        while self.next < len(self.points):
            self.next += 1
            yield self.points[self.next - 1]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(6, 6)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.mean = MeanMetric()
        self.num_hooked = 0
        self.automatic_optimization = not SETTINGS.get("manual")

    def training_step(self, batch, batch_idx):
        indices, x, y = zip(*batch.values(), strict=True) if isinstance(batch, dict) else ([part] for part in batch)
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        hidden = self.backbone(torch.cat(x))
        interruption.reach("forward", number)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: interruption.reach("backward", number))
        loss = nn.functional.cross_entropy(self.net(hidden), torch.cat(y))
        self.log("train_loss", loss)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, sync_dist=NUM_RANKS > 1)
        self.mean(loss.detach())
        self.log("mean_metric", self.mean, on_step=False, on_epoch=True)
        record("train", self.trainer, batch_idx, torch.cat(indices).tolist(), loss.item().hex())
        if number == SETTINGS.get("stop_at"):
            self.trainer.should_stop = True
        if not self.automatic_optimization:
            self.step_by_hand(loss, batch_idx)
        return loss

    def step_by_hand(self, loss, batch_idx):
        self.manual_backward(loss)
        if batch_idx % SETTINGS.get("manual") == SETTINGS.get("manual") - 1:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def validation_step(self, batch, batch_idx):
        _, x, y = batch
        loss = nn.functional.cross_entropy(self.net(self.backbone(x)), y)
        self.log("val_loss", loss, sync_dist=NUM_RANKS > 1)
        record("val", self.trainer, batch_idx, [], loss.item().hex())

    def on_train_batch_end(self, *args):
        self.num_hooked += 1  # changed behind all callbacks; must be in the checkpoint all the same

    def on_save_checkpoint(self, checkpoint):
        checkpoint["num_hooked"] = self.num_hooked

    def on_load_checkpoint(self, checkpoint):
        interruption.reach("resuming")
        self.num_hooked = checkpoint["num_hooked"]

    def configure_optimizers(self):
        if SETTINGS.get("manual"):
            layers = list(self.net)
            return [
                torch.optim.Adam([*self.backbone.parameters(), *layers[0].parameters()], lr=1e-2),
                torch.optim.SGD([*layers[1].parameters(), *layers[4].parameters()], lr=1e-2, momentum=0.9),
            ]
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
        optimizer.register_step_post_hook(lambda *_: interruption.reach("optimizer", self.trainer.global_step + 1))
        if (plateau := SETTINGS.get("plateau")) is not None:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
            monitor = SETTINGS.get("monitor", "train_loss" if plateau == "step" else "val_loss")
            return [optimizer], [{"scheduler": scheduler, "interval": plateau, "monitor": monitor}]
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]

    def train_dataloader(self):
        workers = SETTINGS.get("workers", 0)
        options = {"num_workers": workers, "persistent_workers": bool(SETTINGS.get("persistent"))}
        size = SETTINGS.get("samples", 40)
        match SETTINGS.get("loader", "elastic"):
            case "elastic":
                return elastic_loader(Points(size, "data"), batch_size=5, seed=7, **options)
            case "two":
                loaders = {
                    f"{seed}": elastic_loader(Points(size), batch_size=5, seed=seed, **options) for seed in (7, 8)
                }
                return CombinedLoader(loaders, "max_size_cycle")
            case "stateful":
                return StatefulDataLoader(Points(size), batch_size=5, shuffle=True, **options)
            case "stateful stream":
                return StatefulDataLoader(Stream(size), batch_size=5, **options)
            case "stream":
                return DataLoader(Stream(size), batch_size=5, **options)
        return DataLoader(Points(size), batch_size=5, shuffle=True, **options)

    def val_dataloader(self):
        workers = SETTINGS.get("workers", 0)
        options = {"num_workers": workers, "persistent_workers": bool(SETTINGS.get("persistent"))}
        return elastic_loader(Points(15), batch_size=5, shuffle=False, **options)


class Ddp(DDPStrategy):
    def barrier(self, name=None):
        interruption.reach("barrier", name)
        super().barrier(name)


class Swap(Callback):
    """Swaps weights during validation, as averaging callbacks do."""

    def on_validation_epoch_start(self, trainer, pl_module):
        self.kept = [p.detach().clone() for p in pl_module.parameters()]
        for p in pl_module.parameters():
            p.data.mul_(0.5)

    def on_validation_epoch_end(self, trainer, pl_module):
        for p, kept in zip(pl_module.parameters(), self.kept, strict=True):
            p.data.copy_(kept)


class Unfreeze(BackboneFinetuning):
    """Trains the backbone too, from the second epoch on."""

    def __init__(self):
        super().__init__(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)


OTHERS = {
    "swap": Swap,
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "unfreeze": Unfreeze,
    "accumulation by epoch": lambda: GradientAccumulationScheduler({0: 1, 1: 2}),
}


class Interrupt(Callback):
    """Sends this process the signal at the exact point of SETTINGS["at"], for example ["train_start", 7]."""

    def __init__(self):
        self.num_validations = 0

    def _maybe(self, *point):
        interruption.reach(*point)
        if list(point) == SETTINGS.get("at") and "to" not in SETTINGS:
            os.kill(os.getpid(), getattr(signal, SETTINGS["signal"]))
            assert noticed.wait(30)
        if list(point) == SETTINGS.get("await"):
            append("events", {"event": "Awaiting"})
            assert noticed.wait(60), "no signal came"

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._maybe("batch", trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._maybe("val", trainer.global_step, batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        means = [trainer.callback_metrics[name].item().hex() for name in ("mean_loss", "mean_metric")]
        record("means", trainer, 0, [], means)
        self._maybe("epoch_end", trainer.current_epoch)

    def on_sanity_check_end(self, trainer, pl_module):
        self._maybe("sanity")

    def on_train_end(self, trainer, pl_module):
        self._maybe("end")


def record(kind, trainer, batch_idx, *values):
    if not trainer.sanity_checking:
        line = [kind, trainer.current_epoch, trainer.fit_loop.epoch_loop.total_batch_idx, batch_idx, *values]
        append("trace", line)


def append(name, value):
    with open(f"{FOLDER}/{name}-{RANK}.jsonl", "a") as file:
        file.write(json.dumps(value) + "\n")


def on_event(event):
    append("events", {"event": type(event).__name__, **asdict(event)})
    if isinstance(event, NoticeReceived):
        noticed.set()
    interruption.hear(event)


def main(folder, settings):
    global FOLDER, SETTINGS, RANK, NUM_RANKS, interruption
    FOLDER, SETTINGS = folder, settings
    RANK, NUM_RANKS = int(os.environ.get("LOCAL_RANK", 0)), settings.get("ranks", 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    url = SETTINGS.get("url", f"file://{folder}/run")
    spot = SpotCheckpoint(url, every_steps=SETTINGS.get("every_steps", 5), on_event=[on_event], grace_seconds=20)
    interruption = Interruption(SETTINGS, RANK, lambda: spot._fit.session, lambda event: append("events", event))
    early = EarlyStopping("val_loss", patience=100)
    best = ModelCheckpoint(FOLDER, monitor="val_loss", save_top_k=1, every_n_train_steps=None)
    others = [OTHERS[name]() for name in SETTINGS.get("callbacks", [])]
    validates = SETTINGS.get("trainer", {}).get("limit_val_batches") != 0
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=FOLDER,
        devices=NUM_RANKS,
        strategy=Ddp() if NUM_RANKS > 1 else "auto",
        num_sanity_val_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Interrupt(), spot, *([early, best] if validates else []), *others],
        **{"max_epochs": 3, **SETTINGS.get("trainer", {})},
    )
    module = Net()
    trainer.fit(module)
    final = {
        "model": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "rng": encode(RngPart().state_dict()),
        "early": early.state_dict(),
        "best": {k: v for k, v in best.state_dict().items() if k == "best_model_score"},
        "hooked": module.num_hooked,
        "metrics": dict(trainer.callback_metrics),
        "trainable": [p.requires_grad for p in module.parameters()],
        "steps": [trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped],
    }
    torch.save(final, f"{FOLDER}/final-{RANK}.pt")
