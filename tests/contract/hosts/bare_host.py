"""The adapter of a loop of one's own, written as docs/tutorials/bare.md does."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from contract.hosts import training
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart


class Place:
    """The part that says how far the loop is."""

    def __init__(self, loaders, num_ranks):
        self.positions = [LoaderPosition(loader, num_ranks) for loader in loaders]
        self.num_epochs = 0
        self.num_batches = 0  # of the present iterators

    def state_dict(self):
        positions = [position.state_dict(self.num_batches) for position in self.positions]
        return {"num_epochs": self.num_epochs, "positions": positions}

    def load_state_dict(self, state):
        self.num_epochs = state["num_epochs"]
        for position, at in zip(self.positions, state["positions"], strict=True):
            position.load_state_dict(at)

    def begin(self, epoch, loaders):
        """Return what is left of *epoch*, with the numbers of its batches."""
        self.num_batches = 0
        iterators, before = [], 0
        for position, loader in zip(self.positions, loaders, strict=True):
            position.begin_epoch(epoch)
            before = position.num_done
            iterators.append(iter(loader))
            position.fast_forward(iterators[-1])
        return enumerate(zip(*iterators, strict=False), start=before + 1)


def validate(net, pause, step, epoch, probe):
    losses = []
    net.eval()
    with pause as paused, torch.no_grad():
        for number, batch in enumerate(training.make_validation_loader()):
            probe.come_to("validation")
            if paused is not None:
                paused.check()
            losses.append(training.loss_of(net, batch))
            probe.validated(epoch, step, number, losses[-1])
    net.train()
    return sum(losses)


def train(program, url, probe):
    """Train *program* at *url* and return its final state."""
    if program.num_ranks > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(1 + probe.rank)
    inner = net = training.Net(program.width)
    if program.num_ranks > 1:
        net = DistributedDataParallel(inner)
    optimizers = training.make_optimizers(program, inner)
    schedulers = training.make_schedulers(program, optimizers)
    loaders = training.make_loaders(program)
    place = Place(loaders, program.num_ranks)
    config = SpotConfig(url=url, every_steps=program.every_steps)
    with SpotSession(config, on_event=probe.on_event) as session:
        probe.host = session
        session.register_model(net, optimizers, schedulers)
        session.register("place", place)
        session.register("rng", RngPart())
        session.handle_signals()
        step = session.resume() or 0
        for epoch in range(place.num_epochs, program.num_epochs):
            for number, batches in place.begin(epoch, loaders):
                if program.validates_before(number):
                    is_step = program.ends_step(number - 1)  # within an accumulation there is nothing to save
                    validate(inner, session.pause(step) if is_step else nullcontext(), step, epoch, probe)
                probe.come_to("batch")
                batch = training.joined(batches)
                loss = training.loss_of(net, batch)
                probe.trained(epoch, step, batch[0], training.rates(optimizers), loss)
                (loss / program.accumulate).backward()
                place.num_batches += 1
                if not program.ends_step(number):
                    continue
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if program.schedule == "step":
                    for scheduler in schedulers:
                        scheduler.step()
                step += 1
                session.after_step(step)
            probe.come_to("epoch end")
            loss = validate(inner, session.pause(step), step, epoch, probe) if program.validate == "epoch" else None
            if program.schedule in ("epoch", "plateau"):
                for scheduler in schedulers:
                    scheduler.step(*([loss] if program.schedule == "plateau" else []))
            place.num_epochs += 1
        session.finish(step)
    return training.final_state(inner, optimizers, schedulers)
