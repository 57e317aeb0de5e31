"""
A small training with any host, and no set-up of logging. Started by tests/unit/session/test_visible_lines.py.

It gets :data:`sent` in the middle of a step, and :data:`sent_later` at each event that follows.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 4

sent = [signal.SIGTERM]
sent_later = []


def send(signals):
    """Send *signals* to this process, each after the one before has arrived."""
    for number in signals:
        os.kill(os.getpid(), number)


def on_event(event):
    """Send what comes while the process leaves."""
    if type(event).__name__ == "NoticeReceived":
        on_event.is_noticed = True
    if on_event.is_noticed and threading.current_thread() is threading.main_thread():
        send(sent_later)


on_event.is_noticed = False


def pieces():
    """Return the model, the optimizer and the loader."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    loader = DataLoader(TensorDataset(torch.arange(8.0).view(4, 2)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), loader


def in_step(step, stop):
    """Get the signals in the middle of step *stop*, which is long."""
    if step + 1 == stop:
        send(sent)
        while not on_event.is_noticed:  # or until KeyboardInterrupt
            time.sleep(0.01)
        print("still in the step", file=sys.stderr, flush=True)


def bare(url, stop):
    from spot_plugins import SpotConfig, SpotSession

    model, optimizer, _ = pieces()
    with SpotSession(SpotConfig(url=url, every_steps=100), on_event=on_event) as session:
        session.handle_signals()
        session.register_model(model, [optimizer])
        step = session.resume() or 0
        while step < STEPS:
            model(torch.ones(1, 2)).sum().backward()
            in_step(step, stop)
            optimizer.step()
            step += 1
            session.after_step(step)
        session.finish(step)


def lightning(url, stop):
    from lightning.pytorch import LightningModule, Trainer

    from spot_plugins.lightning import SpotCheckpoint

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.optimizer, self.loader = pieces()

        def training_step(self, batch, batch_idx):
            in_step(self.global_step, stop)
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return self.optimizer

        def train_dataloader(self):
            return self.loader

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    callbacks = [SpotCheckpoint(url, every_steps=100, on_event=on_event)]
    Trainer(accelerator="cpu", callbacks=callbacks, max_epochs=1, **quiet).fit(Net())


def accelerate(url, stop):
    from accelerate import Accelerator

    from spot_plugins.accelerate import SpotHook

    accelerator = Accelerator(cpu=True)
    with SpotHook(accelerator, url, every_steps=100, on_event=on_event) as spot:
        model, optimizer, loader = accelerator.prepare(*pieces())
        spot.resume()
        for _ in spot.epochs(1):
            for batch in spot.batches(loader):
                accelerator.backward(model(batch[0]).sum())
                in_step(spot.progress.step, stop)
                optimizer.step()
                optimizer.zero_grad()
                spot.after_step()


def main(host, url, stop):
    warnings.simplefilter("ignore")
    on_event.is_noticed = False
    torch.set_num_threads(1)
    {"bare": bare, "lightning": lightning, "accelerate": accelerate}[host](url, stop)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
