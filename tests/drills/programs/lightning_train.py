"""
A real Lightning training that can be interrupted at an exact point. Run by test_lightning_exact.py.

Writes what :mod:`drill` says, and the final state to FOLDER/final-RANK.pt.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings

import numpy as np
import torch
from drill import Drill
from drill_settings import Settings
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
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric
from training_pieces import Points, Stream, classifier, hexed

from spot_plugins.data import elastic_loader
from spot_plugins.events import NoticeReceived
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.state import RngPart, encode

drill: Drill  # of this process; callbacks copy modules, and must not copy it
noticed = threading.Event()


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(6, 6)
        self.net = classifier()
        self.mean = MeanMetric()
        self.num_hooked = 0
        self.automatic_optimization = not drill.settings.manual

    def training_step(self, batch, batch_idx):
        indices, x, y = zip(*batch.values(), strict=True) if isinstance(batch, dict) else ([part] for part in batch)
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        hidden = self.backbone(torch.cat(x))
        drill.reach("forward", number)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: drill.reach("backward", number))
        loss = nn.functional.cross_entropy(self.net(hidden), torch.cat(y))
        self.log("train_loss", loss)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, sync_dist=drill.settings.ranks > 1)
        self.mean(loss.detach())
        self.log("mean_metric", self.mean, on_step=False, on_epoch=True)
        record("train", self.trainer, batch_idx, torch.cat(indices).tolist(), hexed(loss))
        if number == drill.settings.stop_at:
            self.trainer.should_stop = True
        if not self.automatic_optimization:
            self.step_by_hand(loss, batch_idx)
        return loss

    def step_by_hand(self, loss, batch_idx):
        self.manual_backward(loss)
        if batch_idx % drill.settings.manual == drill.settings.manual - 1:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def validation_step(self, batch, batch_idx):
        _, x, y = batch
        loss = nn.functional.cross_entropy(self.net(self.backbone(x)), y)
        self.log("val_loss", loss, sync_dist=drill.settings.ranks > 1)
        record("val", self.trainer, batch_idx, [], hexed(loss))

    def on_train_batch_end(self, *args):
        self.num_hooked += 1  # changed behind all callbacks; must be in the checkpoint all the same

    def on_save_checkpoint(self, checkpoint):
        checkpoint["num_hooked"] = self.num_hooked

    def on_load_checkpoint(self, checkpoint):
        drill.reach("resuming")
        self.num_hooked = checkpoint["num_hooked"]

    def configure_optimizers(self):
        if drill.settings.manual:
            layers = list(self.net)
            return [
                torch.optim.Adam([*self.backbone.parameters(), *layers[0].parameters()], lr=1e-2),
                torch.optim.SGD([*layers[1].parameters(), *layers[4].parameters()], lr=1e-2, momentum=0.9),
            ]
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
        optimizer.register_step_post_hook(lambda *_: drill.reach("optimizer", self.trainer.global_step + 1))
        if (plateau := drill.settings.plateau) is not None:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
            monitor = drill.settings.monitor or ("train_loss" if plateau == "step" else "val_loss")
            return [optimizer], [{"scheduler": scheduler, "interval": plateau, "monitor": monitor}]
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]

    def train_dataloader(self):
        settings = drill.settings
        data = Points(settings.samples, is_noisy=settings.augment, on_draw=lambda number: drill.reach("data", number))
        match settings.loader:
            case "elastic":
                return elastic_loader(data, batch_size=5, seed=7, **worker_options())
            case "two":
                loaders = {
                    f"{seed}": elastic_loader(data, batch_size=5, seed=seed, **worker_options()) for seed in (7, 8)
                }
                return CombinedLoader(loaders, "max_size_cycle")
            case "stateful":
                return StatefulDataLoader(data, batch_size=5, shuffle=True, **worker_options())
            case "stateful stream":
                return StatefulDataLoader(Stream(data), batch_size=5, **worker_options())
            case "stream":
                return DataLoader(Stream(data), batch_size=5, **worker_options())
        return DataLoader(data, batch_size=5, shuffle=True, **worker_options())

    def val_dataloader(self):
        data = Points(15, is_noisy=drill.settings.augment)
        return elastic_loader(data, batch_size=5, shuffle=False, **worker_options())


def worker_options():
    return {"num_workers": drill.settings.workers, "persistent_workers": drill.settings.persistent}


class Ddp(DDPStrategy):
    def barrier(self, name=None):
        drill.reach("barrier", name)
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
    """Sends this process the signal at the exact point of settings.at, for example ["train_start", 7]."""

    def __init__(self):
        self.num_validations = 0

    def _maybe(self, *point):
        drill.reach(*point)
        if drill.is_at_own_signal(*point):
            os.kill(os.getpid(), signal.Signals[drill.settings.signal])
            assert noticed.wait(300)
        if list(point) == drill.settings.wait_at:
            drill.write("events", {"event": "Awaiting"})
            assert noticed.wait(300), "no signal came"

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._maybe("batch", trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._maybe("val", trainer.global_step, batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        means = [hexed(trainer.callback_metrics[name]) for name in ("mean_loss", "mean_metric")]
        record("means", trainer, 0, [], means)
        self._maybe("epoch_end", trainer.current_epoch)

    def on_sanity_check_end(self, trainer, pl_module):
        self._maybe("sanity")

    def on_train_end(self, trainer, pl_module):
        self._maybe("end")


def record(kind, trainer, batch_idx, *values):
    if not trainer.sanity_checking:
        line = [kind, trainer.current_epoch, trainer.fit_loop.epoch_loop.total_batch_idx, batch_idx, *values]
        drill.write("trace", line)


def on_event(event):
    if isinstance(event, NoticeReceived):
        noticed.set()
    drill.on_event(event)


def main(settings):
    global drill
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    spot = SpotCheckpoint(settings.run, every_steps=settings.every_steps, on_event=[on_event], grace_seconds=60)
    drill = Drill(settings, int(os.environ.get("LOCAL_RANK", 0)), lambda: spot._fit.session)
    early = EarlyStopping("val_loss", patience=100)
    best = ModelCheckpoint(settings.folder, monitor="val_loss", save_top_k=1, every_n_train_steps=None)
    others = [OTHERS[name]() for name in settings.callbacks]
    validates = settings.trainer.get("limit_val_batches") != 0
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=settings.folder,
        devices=settings.ranks,
        strategy=Ddp() if settings.ranks > 1 else "auto",
        num_sanity_val_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Interrupt(), spot, *([early, best] if validates else []), *others],
        **{"max_epochs": settings.epochs, **settings.trainer},
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
    torch.save(final, settings.path / f"final-{drill.rank}.pt")


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
