"""
A real Accelerate training that can be interrupted at an exact point. Run by test_accelerate_exact.py.

It appends what every batch saw to FOLDER/trace-RANK.jsonl, every event to FOLDER/events-RANK.jsonl, and writes the
final state to FOLDER/final-RANK.pt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from interrupting import Interruption
from torch import nn
from torch.utils.data import DataLoader, Dataset

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.state import RngPart, encode


class Points(Dataset):
    """Points with noise from all three random streams, as an augmentation has."""

    def __init__(self, size, noisy=True, reach=None):
        generator = torch.Generator().manual_seed(size)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = torch.randint(0, 3, (size,), generator=generator)
        self.noisy = noisy
        self.reach = reach
        self.num_drawn = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.num_drawn += 1
        if self.reach is not None:
            self.reach("data", self.num_drawn)
        noise = random.random() + np.random.rand() + torch.rand(6) if self.noisy else 0.0
        return index, self.x[index] + 0.1 * noise, self.y[index]


class Stuck(Points):
    """Points whose worker processes get stuck after some samples."""

    def __init__(self, size, sign):
        super().__init__(size)
        self.sign = sign

    def __getitem__(self, index):
        if self.num_drawn == 25:
            self.sign.touch()
            time.sleep(60)
        return super().__getitem__(index)


class Value:
    """State of the user's own."""

    def __init__(self, on_load=None):
        self.value = 0
        self.on_load = on_load

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        if self.on_load is not None:
            self.on_load()
        self.value = state["value"]


class Training:
    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.settings = settings
        config = DataLoaderConfiguration(use_stateful_dataloader=settings.get("loader") == "stateful")
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=settings.get("accumulate", 1), dataloader_config=config
        )
        if settings.get("scaler"):  # Accelerate makes one on a GPU only
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        self.rank = self.accelerator.process_index
        set_seed(1)
        torch.set_num_threads(1)

    def run(self):
        self.interruption = Interruption(
            self.settings, self.rank, lambda: self.spot._session, lambda event: self.append("events", event)
        )
        self.spot = SpotHook(
            self.accelerator,
            self.settings.get("url", f"file://{self.folder}/run"),
            every_steps=self.settings.get("every_steps", 5),
            grace_seconds=20,
            on_event=[self.on_event],
        )
        with self.spot:
            self.build()
            self.spot.register("num_batches", self.num_batches)
            self.spot.register("plateau", self.plateau)
            self.progress = self.spot.resume()
            self.append("progress", asdict(self.progress))
            torch.rand(3)  # between, streams may be drawn from
            for epoch in self.spot.epochs(self.settings.get("epochs", 3)):
                self.train_epoch(epoch)
                if self.settings.get("validate", "epoch") == "epoch":
                    self.validate()
                self.interrupt("epoch_end", epoch)
            self.interrupt("end")
        torch.save(self.final(), self.folder / f"final-{self.rank}.pt")

    def build(self):
        net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        self.net, self.optimizer, self.scheduler, self.loader, self.other, self.val = self.accelerator.prepare(
            net, optimizer, scheduler, self.make_loader(), elastic_loader(Points(50), batch_size=3), self.make_val()
        )
        optimizer.register_step_post_hook(lambda *_: self.interruption.reach("optimizer", self.num_batches.value))
        self.num_batches = Value(on_load=lambda: self.interruption.reach("resuming"))
        self.luck = Value()
        self.accelerator.register_for_checkpointing(self.luck)

    def make_loader(self):
        is_elastic = self.settings.get("loader", "elastic") == "elastic"
        # Random numbers in the data set are repeatable in keyed samples, and in workers that begin with the epoch.
        is_repeatable = is_elastic or (self.settings.get("workers", 0) > 0 and not self.settings.get("persistent"))
        data = Points(self.settings.get("samples", 40), noisy=is_repeatable, reach=self.interruption.reach)
        if self.settings.get("stuck"):
            data = Stuck(200, self.folder / "stuck")
        if is_elastic:
            return elastic_loader(data, batch_size=5, seed=7, **self.worker_options)
        return DataLoader(data, batch_size=5, shuffle=True, **self.worker_options)

    def make_val(self):
        data = Points(20, noisy=False)
        if self.accelerator.num_processes > 1 and self.settings.get("loader", "elastic") == "elastic":
            return elastic_loader(data, batch_size=5, shuffle=False, **self.worker_options)
        return DataLoader(data, batch_size=5, **self.worker_options)

    @property
    def worker_options(self):
        return {
            "num_workers": self.settings.get("workers", 0),
            "persistent_workers": bool(self.settings.get("persistent")),
        }

    def train_epoch(self, epoch):
        self.net.train()
        torch.rand(epoch + 1)  # a resumed epoch runs its head again, with no effect on what follows
        for batch in self.batches():
            self.train_on(batch)
            self.interrupt("stepped", self.spot.progress.step)

    def batches(self):
        """Yield what to train on, from one loader or two."""
        batches = self.spot.batches(self.loader)
        others = self.spot.batches(self.other) if "other" in self.settings else iter([])
        match self.settings.get("other"):
            case "in pairs":
                for batch, other in zip(batches, others):  # noqa: B905
                    yield joined(batch, other)
            case "at times":
                for batch in batches:
                    yield joined(batch, next(others)) if self.spot.progress.step % 3 == 0 else batch
            case _:
                yield from batches
                yield from others

    def train_on(self, batch):
        progress = self.spot.progress
        head_is_due = self.settings.get("validate") == "head" and progress.step % 4 == 0
        if head_is_due:
            self.validate()
        index, x, y = batch
        self.num_batches.value += 1
        number = self.num_batches.value
        self.interrupt("batch", number)
        with self.accelerator.accumulate(self.net):
            out = self.net(x)
            self.interruption.reach("forward", number)
            out.register_hook(lambda _: self.interruption.reach("backward", number))
            loss = nn.functional.cross_entropy(out, y)
            if self.settings.get("scaler") and progress.step % 5 == 2:
                loss = loss * float("inf")
            self.append("trace", ["train", progress.epoch, number, index.tolist(), hexed(loss)])
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.luck.value += random.random()
        self.spot.after_step()
        if (
            "at" in self.settings and "to" not in self.settings
        ):  # or it would depend on luck which save finds room, and which is the newest
            wait_until(lambda: not self.spot._session._pusher.is_busy)
        if self.settings.get("validate") == "body" and self.spot.progress.step % 4 == 0:
            self.validate(feedback=False)

    def validate(self, feedback=True):
        self.net.eval()
        total = torch.zeros(())
        samples = []
        step = self.spot.progress.step
        with self.spot.pause():
            for number, (index, x, y) in enumerate(self.val):
                samples += index.tolist()
                self.interrupt("val", step, number)
                self.spot.check()
                if self.accelerator.num_processes == 1 and self.spot._session.notice is not None:
                    os._exit(2)  # check() has to leave at once; only several ranks have to agree first
                with torch.no_grad():
                    total += nn.functional.cross_entropy(self.net(x), y) + 0.01 * torch.rand(())
        self.net.train()
        total = self.accelerator.reduce(total)
        self.append("trace", ["val", self.spot.progress.epoch, step, samples, hexed(total)])
        if feedback:
            self.plateau.step(total.item())

    def interrupt(self, *point):
        """Send this process the signal if this is the point of settings["at"], for example ["batch", 7]."""
        self.interruption.reach(*point)
        if list(point) != self.settings.get("at") or "to" in self.settings:
            return
        if point[0] == "val":
            self.accelerator.wait_for_everyone()  # all ranks stand in the pause
        if self.settings["signal"] == "SIGKILL":
            self.accelerator.wait_for_everyone()  # the saves of all ranks are stored
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings["signal"] == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # it comes from outside
            wait_until(lambda: not self.settings.get("stuck") or (self.folder / "stuck").exists())
            self.append("ready", os.getpid())
        wait_until(lambda: self.spot._session.notice is not None)  # all ranks are told

    def on_event(self, event):
        self.append("events", {"event": type(event).__name__, **asdict(event)})
        self.interruption.hear(event)

    def append(self, name, value):
        with (self.folder / f"{name}-{self.rank}.jsonl").open("a") as file:
            file.write(json.dumps(value) + "\n")

    def final(self):
        scaler = self.accelerator.scaler
        return {
            "model": self.accelerator.unwrap_model(self.net).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "plateau": self.plateau.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": encode(RngPart().state_dict()),
            "values": [self.num_batches.value, self.luck.value],
            "counters": [self.accelerator.step, self.spot.progress.step, self.spot.progress.epoch],
            "iterations": [loader.iteration for loader in (self.loader, self.other)],
        }


def wait_until(is_true):
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def joined(batch, other):
    return [torch.cat(pair) for pair in zip(batch, other, strict=True)]


def hexed(loss):
    return float(loss).hex()


def main(folder, settings):
    warnings.simplefilter("ignore")
    Training(folder, settings).run()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
