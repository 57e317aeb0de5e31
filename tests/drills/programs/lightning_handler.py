"""A trainer that is told to leave, in a process of its own: leaving ends data-loader workers for good."""

from __future__ import annotations

import signal

import pytest
import torch
from hearing import until_notice
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import TensorDataset

from spot_plugins.data import elastic_loader
from spot_plugins.errors import Preempted
from spot_plugins.lightning import SpotCheckpoint


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def train_dataloader(self):
        return elastic_loader(TensorDataset(torch.ones(12, 4)), batch_size=2)


class Terminate(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert "spot_plugins" in signal.getsignal(signal.SIGTERM).__module__
        if batch_idx == 3:
            signal.raise_signal(signal.SIGTERM)
            until_notice()  # the other steps take less time than that


def main(settings):
    spot = SpotCheckpoint(settings.run, every_steps=5)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, default_root_dir=settings.folder, callbacks=[spot, Terminate()]
    )

    with pytest.raises(Preempted) as left:
        trainer.fit(Net())

    assert left.value.code == 143
    assert left.value.step >= 4
    assert not trainer._signal_connector.received_sigterm
    signal.raise_signal(signal.SIGTERM)  # would end this process
