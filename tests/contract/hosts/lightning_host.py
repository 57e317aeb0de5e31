"""The adapter of Lightning, written as docs/tutorials/lightning.md does."""

from __future__ import annotations

import torch
from contract.hosts import training
from lightning.pytorch import Callback, LightningModule, Trainer

from spot_plugins.lightning import SpotCheckpoint


class Module(LightningModule):
    def __init__(self, program, probe):
        super().__init__()
        self.net = training.Net(program.width)
        self.program = program
        self.probe = probe
        self.automatic_optimization = len(program.optimizers) == 1

    def training_step(self, batch, batch_idx):
        batch = training.joined(list(batch.values()) if isinstance(batch, dict) else [batch])
        loss = training.loss_of(self.net, batch)
        step, rates = self.trainer.global_step, training.rates(self.trainer.optimizers)
        self.probe.trained(self.current_epoch, step, batch[0], rates, loss)
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss / self.program.accumulate)
        if self.program.ends_step(batch_idx + 1):
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
            if self.program.schedule == "step":
                for scheduler in self._schedulers():
                    scheduler.step()
        return None

    def on_train_epoch_end(self):
        if not self.automatic_optimization and self.program.schedule == "epoch":
            for scheduler in self._schedulers():
                scheduler.step()

    def _schedulers(self):
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [found]

    def validation_step(self, batch, batch_idx):
        loss = training.loss_of(self.net, batch)
        self.log("val_loss", loss, sync_dist=self.program.num_ranks > 1)
        if not self.trainer.sanity_checking:
            self.probe.validated(self.current_epoch, self.trainer.global_step, batch_idx, loss)

    def configure_optimizers(self):
        optimizers = training.make_optimizers(self.program, self.net)
        interval = "step" if self.program.schedule == "step" else "epoch"
        settings = {"interval": interval, "monitor": "val_loss"}
        schedulers = training.make_schedulers(self.program, optimizers)
        return optimizers, [{"scheduler": scheduler, **settings} for scheduler in schedulers]


class Places(Callback):
    """Tells the probe where the training is."""

    def __init__(self, probe):
        self.probe = probe

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.probe.come_to("batch")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.probe.come_to("validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.probe.come_to("epoch end")


def train(program, url, probe):
    """Train *program* at *url* and return its final state."""
    torch.manual_seed(1)
    spot = probe.host = SpotCheckpoint(url, every_steps=program.every_steps, on_event=probe.on_event)
    module = Module(program, probe)
    loaders = training.make_loaders(program)
    every = {"val_check_interval": program.validate} if isinstance(program.validate, int) else {}
    trainer = Trainer(
        accelerator="cpu",
        devices=program.num_ranks,
        strategy="ddp" if program.num_ranks > 1 else "auto",
        max_epochs=program.num_epochs,
        accumulate_grad_batches=program.accumulate if module.automatic_optimization else 1,
        callbacks=[Places(probe), spot],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **every,
    )
    trainer.fit(
        module,
        loaders[0] if len(loaders) == 1 else {str(number): loader for number, loader in enumerate(loaders)},
        training.make_validation_loader() if program.validate != "never" else None,
    )
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return training.final_state(module.net, trainer.optimizers, schedulers)
