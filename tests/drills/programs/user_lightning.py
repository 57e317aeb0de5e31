"""Programs of Lightning as people write them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader
from training_pieces import Points, Stream, classifier
from user_pieces import cross_entropy, loader_of, mlp

from spot_plugins.lightning import SpotCheckpoint


class Module(LightningModule):
    """A usual module. The kinds override what they do otherwise."""

    trainer_settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, life):
        super().__init__()
        self.life = life
        self.net = classifier()

    def training_step(self, batch, batch_idx):
        self.life.begin_batch()
        step = self.trainer.global_step
        loss = self.step(batch, batch_idx)
        rows = next(iter(batch.values())) if isinstance(batch, dict) else batch
        self.life.trained(step, rows[0], loss.detach(), self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[1]), batch[2])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return loader_of()

    def callbacks(self):
        return []

    def final(self):
        return self.state_dict(), [optimizer.state_dict() for optimizer in self.trainer.optimizers]

    def run(self):
        spot = SpotCheckpoint(self.life.url, every_steps=2, on_event=self.life.on_event)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        settings = {"max_epochs": 2, **self.trainer_settings}
        Trainer(accelerator="cpu", callbacks=[*self.callbacks(), spot], **quiet, **settings).fit(self)
        return self.final()


class NoisyModule(Module):
    def step(self, batch, batch_idx):
        return super().step([batch[0], batch[1] + 0.1 * torch.randn_like(batch[1]), batch[2]], batch_idx)


class ManualGan(Module):
    def __init__(self, life):
        super().__init__(life)
        self.maker, self.judge, self.automatic_optimization = mlp(6), mlp(1), False

    def step(self, batch, batch_idx):
        first, second = self.optimizers()
        real = nn.functional.binary_cross_entropy_with_logits
        fake, ones = self.maker(torch.randn(len(batch[1]), 6)), torch.ones(len(batch[1]), 1)
        loss = real(self.judge(batch[1]), ones) + real(self.judge(fake.detach()), 0 * ones)
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        if batch_idx % 2:
            first.zero_grad()
            self.manual_backward(real(self.judge(fake), ones))
            first.step()
        return loss

    def configure_optimizers(self):
        return [torch.optim.Adam(self.maker.parameters(), lr=0.01), torch.optim.Adam(self.judge.parameters(), lr=0.02)]


class ManualInner(Module):
    """Several steps of the optimizer on each batch."""

    def __init__(self, life):
        super().__init__(life)
        self.automatic_optimization = False

    def step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for rows in torch.randperm(4).view(2, 2):
            loss = super().step([part[rows] for part in batch], batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


class Swa(Module):
    trainer_settings: ClassVar[dict[str, Any]] = {"max_epochs": 4}

    def callbacks(self):
        return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)]


class Ema(NoisyModule):
    def callbacks(self):
        return [EMAWeightAveraging(decay=0.9)]


class ClippedModule(NoisyModule):
    trainer_settings: ClassVar[dict[str, Any]] = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 4}


class InBfloat16Module(NoisyModule):
    trainer_settings: ClassVar[dict[str, Any]] = {"precision": "bf16-mixed"}


class EarlyStopped(NoisyModule):
    trainer_settings: ClassVar[dict[str, Any]] = {"max_epochs": 6, "val_check_interval": 2}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", cross_entropy(self.net(batch[1]), batch[2]))

    def val_dataloader(self):
        return DataLoader(Points(8, seed=3), batch_size=4)

    def callbacks(self):
        return [EarlyStopping("val_loss", patience=4)]


class Reloaded(NoisyModule):
    """A data set that grows by epoch."""

    trainer_settings: ClassVar[dict[str, Any]] = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}

    def train_dataloader(self):
        return loader_of(samples=8 * (self.trainer.current_epoch + 1))


class TwoTasks(NoisyModule):
    def step(self, batch, batch_idx):
        return sum(super(TwoTasks, self).step(part, batch_idx) for part in batch.values())

    def train_dataloader(self):
        return {"one": loader_of(7), "two": loader_of(8)}


class WarmRestarted(NoisyModule):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class FrozenByEpoch(NoisyModule):
    """Sets what is trained in ``training_step``, by the epoch."""

    def step(self, batch, batch_idx):
        self.net[0].requires_grad_(self.current_epoch > 0)
        return super().step(batch, batch_idx)


class Prioritized(NoisyModule):
    """Keeps the losses of the samples as a buffer, and weighs the samples by them."""

    def __init__(self, life):
        super().__init__(life)
        self.register_buffer("seen", torch.ones(24))

    def step(self, batch, batch_idx):
        losses = cross_entropy(self.net(batch[1]), batch[2], reduction="none")
        loss = (losses * self.seen[batch[0]]).mean()
        self.seen[batch[0]] = losses.detach()
        return loss


class Layerwise(NoisyModule):
    def configure_optimizers(self):
        groups = [{"params": layer.parameters(), "lr": 0.01 / (n + 1)} for n, layer in enumerate(self.net)]
        return torch.optim.AdamW(groups, weight_decay=0.1)


class StreamedModule(NoisyModule):
    def train_dataloader(self):
        return DataLoader(Stream(Points(24)), batch_size=4)


LIGHTNING = [
    Module, NoisyModule, ManualGan, ManualInner, Swa, Ema, ClippedModule, InBfloat16Module, EarlyStopped, Reloaded,
    TwoTasks, WarmRestarted, FrozenByEpoch, Prioritized, Layerwise, StreamedModule,
]  # fmt: skip
