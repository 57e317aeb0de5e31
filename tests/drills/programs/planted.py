"""
Trainings as a user writes them, with one mistake planted in each: ``planted.py MISTAKE [STEPS]``.

Each is the whole program of a user, so it knows nothing of drills. ``none`` has no mistake.
"""

from __future__ import annotations

import signal
import sys
import time
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition, elastic_loader
from spot_plugins.events import PushFailing
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart

URL = "s3://a-bucket-that-no-drill-may-touch/run-7"
EVERY = {"every_steps": 5, "notice_sources": ()}
STEP_S = 0.08
SAMPLES = torch.arange(240.0).view(-1, 4) / 240  # 60 samples


class Stream(IterableDataset):
    """Samples in an order of its own, without a position."""

    def __iter__(self):
        return iter(SAMPLES)


class Counting:
    """A sampler that counts by itself how often it was asked, and nobody saves that."""

    def __init__(self):
        self.num_epochs = 0

    def __len__(self):
        return len(SAMPLES)

    def __iter__(self):
        self.num_epochs += 1
        generator = torch.Generator().manual_seed(self.num_epochs)
        return iter(torch.randperm(len(SAMPLES), generator=generator).tolist())


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def on_event(event, mistake, has_failed):
    """Let the training go on without saves, once one has failed."""
    if mistake == "give up" and isinstance(event, PushFailing):
        has_failed.append(event)


def bare(mistake, num_steps):
    """A loop of one's own, also under torchrun."""
    import torch.distributed as dist

    world_size = 1
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        world_size = dist.get_world_size()
    model = net()
    trained = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    noise = torch.Generator().manual_seed(5)
    # With "elastic", the samples of a step are the same on any number of ranks.
    loader = elastic_loader(SAMPLES, batch_size=4 // world_size if mistake == "elastic" else 2, seed=3, drop_last=True)
    position, done = LoaderPosition(loader, world_size), 0
    has_failed = []
    session = SpotSession(SpotConfig(url=URL, **EVERY), on_event=lambda event: on_event(event, mistake, has_failed))
    session.register_model(trained, [optimizer], [scheduler])
    if mistake != "position":
        here = SimpleNamespace(state_dict=lambda: position.state_dict(done), load_state_dict=position.load_state_dict)
        session.register("position", here)
    session.register("rng", RngPart())
    with session:
        session.handle_signals()
        if mistake == "swallow":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        step = session.resume() or 0
        for epoch in range(position.epoch, num_steps if step < num_steps else 0):
            position.begin_epoch(epoch)
            done = 0
            for done, batch in enumerate(loader, start=1):  # noqa: B007 - it is part of what is saved
                batch = batch + 0.1 * torch.randn(batch.shape, generator=noise) if mistake == "generator" else batch
                trained(batch).square().mean().backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                time.sleep(STEP_S)
                if not has_failed:
                    session.after_step(step)
                if step == num_steps:
                    break
            if step == num_steps:
                break
        if not has_failed:
            session.finish(step)
    if world_size > 1:
        dist.destroy_process_group()


def accelerate(mistake, num_steps):
    from accelerate import Accelerator

    from spot_plugins.accelerate import SpotHook

    accelerator = Accelerator(cpu=True)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = lambda: torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.5)  # noqa: E731
    if mistake == "stream":
        loader = DataLoader(Stream(), batch_size=2)
    elif mistake == "sampler":
        loader = DataLoader(SAMPLES, batch_size=2, sampler=Counting())
    else:
        loader = elastic_loader(SAMPLES, batch_size=2, seed=3)
    with SpotHook(accelerator, URL, **EVERY) as spot:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        scheduler = None if "scheduler" in mistake else accelerator.prepare(schedule())
        left_out = int(spot.resume().resumed and mistake == "left out")  # batches, in each start but the first
        if scheduler is None:  # also one that nobody prepares is saved, if it is made before
            scheduler = schedule() if mistake == "scheduler" else accelerator.prepare(schedule())
        for _ in spot.epochs(max_steps=num_steps):
            for batch in spot.batches(loader):
                if left_out:
                    left_out -= 1
                    continue
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                time.sleep(STEP_S)
                spot.after_step()


EPOCHS_BEGUN = SimpleNamespace(number=0)


def lightning(mistake, num_steps):
    from lightning.pytorch import LightningModule, Trainer

    from spot_plugins.lightning import SpotCheckpoint

    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            time.sleep(STEP_S)
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def on_train_epoch_start(self):
            if mistake == "epoch start":
                EPOCHS_BEGUN.number += 1  # of this process, not of the training
                self.optimizers().param_groups[0]["lr"] = 0.01 / EPOCHS_BEGUN.number

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_steps=num_steps, callbacks=[SpotCheckpoint(URL, **EVERY)], **quiet)
    trainer.fit(Net(), elastic_loader(SAMPLES, batch_size=2, seed=3))


HOSTS = dict.fromkeys(("accelerate", "stream", "sampler", "scheduler", "late scheduler", "left out"), accelerate)
HOSTS |= {"epoch start": lightning, "lightning": lightning}

if __name__ == "__main__":
    mistake = sys.argv[1]
    HOSTS.get(mistake, bare)(mistake, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
