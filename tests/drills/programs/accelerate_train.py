"""
A real Accelerate training that can be interrupted at an exact point. Run by test_accelerate_exact.py.

Writes what :mod:`drill` says, and the final state to FOLDER/final-RANK.pt.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from drill import Drill
from drill_settings import Settings
from hearing import until, until_not_busy
from torch import nn
from torch.utils.data import DataLoader
from training_pieces import Points, Stuck, classifier, hexed

from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
from spot_plugins.state import RngPart, encode


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
    def __init__(self, settings):
        self.settings = settings
        config = DataLoaderConfiguration(use_stateful_dataloader=settings.loader == "stateful", **settings.dataloader)
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=settings.accumulate, dataloader_config=config
        )
        if settings.scaler:  # Accelerate makes one on a GPU only
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        self.drill = Drill(settings, self.accelerator.process_index, lambda: self.spot._session)
        set_seed(1)
        torch.set_num_threads(1)

    def run(self):
        self.spot = SpotHook(
            self.accelerator,
            self.settings.run,
            every_steps=self.settings.every_steps,
            grace_seconds=60,
            on_event=[self.drill.on_event],
        )
        with self.spot:
            self.build()
            self.spot.register("num_batches", self.num_batches)
            self.spot.register("plateau", self.plateau)
            self.progress = self.spot.resume()
            self.drill.write("progress", asdict(self.progress))
            torch.rand(3)  # between, streams may be drawn from
            for epoch in self.spot.epochs(self.settings.epochs):
                self.train_epoch(epoch)
                if self.settings.validate == "epoch":
                    self.validate()
                self.interrupt("epoch_end", epoch)
            self.interrupt("end")
        torch.save(self.final(), self.settings.path / f"final-{self.drill.rank}.pt")

    def build(self):
        net = classifier()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        self.net, self.optimizer, self.scheduler, self.loader, self.other, self.val = self.accelerator.prepare(
            net,
            optimizer,
            scheduler,
            self.make_loader(),
            self.make_other(),
            self.make_val(),
        )
        optimizer.register_step_post_hook(lambda *_: self.drill.reach("optimizer", self.num_batches.value))
        self.num_batches = Value(on_load=lambda: self.drill.reach("resuming"))
        self.luck = Value()
        self.accelerator.register_for_checkpointing(self.luck)

    def make_loader(self):
        settings = self.settings
        is_elastic = settings.loader == "elastic"
        # Random numbers in the data set are repeatable in keyed samples, and in workers that begin with the epoch.
        is_noisy = is_elastic or (settings.workers > 0 and not settings.persistent)
        data = Points(settings.samples, is_noisy=is_noisy, on_draw=lambda number: self.drill.reach("data", number))
        if settings.stuck:
            data = Stuck(200, settings.path / "stuck")
        if is_elastic:
            return elastic_loader(data, batch_size=5, seed=7, **self.worker_options)
        return DataLoader(data, batch_size=self.batch_size, shuffle=True, **self.worker_options)

    def make_other(self):
        if self.settings.dataloader:
            return DataLoader(Points(50, seed=50), batch_size=self.batch_size)
        return elastic_loader(Points(50, seed=50, is_noisy=True), batch_size=3)

    def make_val(self):
        data = Points(20, seed=20)
        if self.accelerator.num_processes > 1 and self.settings.loader == "elastic":
            return elastic_loader(data, batch_size=5, shuffle=False, **self.worker_options)
        return DataLoader(data, batch_size=self.batch_size, **self.worker_options)

    @property
    def batch_size(self):
        """Samples of a batch of a plain loader. All ranks share one if batches are split."""
        return 5 * (self.settings.ranks if self.settings.dataloader.get("split_batches") else 1)

    @property
    def worker_options(self):
        return {"num_workers": self.settings.workers, "persistent_workers": self.settings.persistent}

    def train_epoch(self, epoch):
        self.net.train()
        torch.rand(epoch + 1)  # a resumed epoch runs its head again, with no effect on what follows
        for batch in self.batches():
            self.train_on(batch)
            self.interrupt("stepped", self.spot.progress.step)

    def batches(self):
        """Yield what to train on, from one loader or two."""
        batches = self.spot.batches(self.loader)
        others = self.spot.batches(self.other) if self.settings.other else iter([])
        match self.settings.other:
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
        head_is_due = self.settings.validate == "head" and progress.step % 4 == 0
        if head_is_due:
            self.validate()
        index, x, y = batch
        self.num_batches.value += 1
        number = self.num_batches.value
        self.interrupt("batch", number)
        with self.accelerator.accumulate(self.net):
            out = self.net(x)
            self.drill.reach("forward", number)
            out.register_hook(lambda _: self.drill.reach("backward", number))
            loss = nn.functional.cross_entropy(out, y)
            if self.settings.scaler and progress.step % 5 == 2:
                loss = loss * float("inf")
            self.drill.write("trace", ["train", progress.epoch, number, index.tolist(), hexed(loss)])
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.luck.value += random.random()
        self.spot.after_step()
        if self.settings.at is not None and self.settings.to is None:
            # Or it would depend on luck which save finds room, and which is the newest.
            until_not_busy(self.spot._session)
        if self.settings.validate == "body" and self.spot.progress.step % 4 == 0:
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
        self.drill.write("trace", ["val", self.spot.progress.epoch, step, samples, hexed(total)])
        if feedback:
            self.plateau.step(total.item())

    def interrupt(self, *point):
        """Send this process the signal if this is the point of settings.at, for example ["batch", 7]."""
        self.drill.reach(*point)
        if not self.drill.is_at_own_signal(*point):
            return
        if point[0] == "val":
            self.accelerator.wait_for_everyone()  # all ranks stand in the pause
        if self.settings.signal == "SIGKILL":
            self.accelerator.wait_for_everyone()  # the saves of all ranks are stored
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings.signal == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # it comes from outside
            until(lambda: not self.settings.stuck or (self.settings.path / "stuck").exists(), "a worker is stuck")
            self.drill.write("ready", os.getpid())
        self.drill.await_notice()

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


def joined(batch, other):
    return [torch.cat(pair) for pair in zip(batch, other, strict=True)]


def main(settings):
    warnings.simplefilter("ignore")
    Training(settings).run()


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
