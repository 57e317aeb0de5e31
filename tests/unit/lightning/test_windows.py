"""The windows of accumulation, where the program has changed them in the middle of an epoch."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint

NUM_BATCHES = 12


class Sums(LightningModule):
    """The gradient of a batch is its number, so each step changes the weight by the mean of its window."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.weights = {}

    def training_step(self, batch):
        return (self.weight * batch).sum()

    def on_train_batch_end(self, *_):
        self.weights[self.global_step] = self.weight.item()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(folder, *, window, max_steps=-1):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    spot = SpotCheckpoint(f"file://{folder}/run", every_steps=100)
    limits = {"max_epochs": 2, "max_steps": max_steps, "accumulate_grad_batches": window}
    module = Sums()
    trainer = Trainer(accelerator="cpu", callbacks=[spot], **limits, **quiet)
    trainer.fit(module, elastic_loader(range(1, NUM_BATCHES + 1), batch_size=1, shuffle=False))
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_window_begins_where_the_training_continues(tmp_path):
    """
    One window of 3 batches, then windows of 2 from the fourth batch on. In the next epoch they begin with the first.
    """
    fit(tmp_path, window=3, max_steps=1)
    module = fit(tmp_path, window=2)

    windows = [(1, 2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12,)]
    windows += [(number, number + 1) for number in range(1, NUM_BATCHES, 2)]
    changes = [-sum(window) / 2 for window in windows]  # Lightning divides by the size of a whole window
    changes[0] = -2
    assert module.weights == pytest.approx(dict(enumerate(accumulate(changes, initial=0))))
    assert module.lr_schedulers().last_epoch == len(windows)
