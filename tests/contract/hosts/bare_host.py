"""The adapter of a loop in plain PyTorch, written as docs/tutorials/bare.md does."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from contract.hosts import training
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.bare import SpotLoop


def validate(net, spot, pause, epoch, probe):
    losses = []
    net.eval()
    with pause, torch.no_grad():
        for number, batch in enumerate(training.make_validation_loader()):
            probe.come_to("validation")
            spot.check()
            losses.append(training.loss_of(net, batch))
            probe.validated(epoch, spot.progress.step, number, losses[-1])
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
    settings = {"every_steps": program.every_steps, "gradient_accumulation_steps": program.accumulate}
    with SpotLoop(url, on_event=probe.on_event, **settings) as spot:
        probe.host = spot
        spot.register_model(net, optimizers, schedulers)
        loaders = [spot.register_loader(loader) for loader in training.make_loaders(program)]
        number = spot.resume().batches
        for epoch in spot.epochs(program.num_epochs):
            for batches in zip(*map(spot.batches, loaders), strict=False):
                number += 1
                if program.validates_before(number):
                    is_step = program.ends_step(number - 1)  # within an accumulation there is nothing to save
                    validate(inner, spot, spot.pause() if is_step else nullcontext(), epoch, probe)
                probe.come_to("batch")
                batch = training.joined(batches)
                with nullcontext() if program.num_ranks == 1 or spot.sync_gradients else net.no_sync():
                    loss = training.loss_of(net, batch)
                    probe.trained(epoch, spot.progress.step, batch[0], training.rates(optimizers), loss)
                    (loss / spot.gradient_accumulation_steps).backward()
                if spot.sync_gradients:
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                    if program.schedule == "step":
                        for scheduler in schedulers:
                            scheduler.step()
                spot.after_step()
            number = 0
            probe.come_to("epoch end")
            loss = validate(inner, spot, spot.pause(), epoch, probe) if program.validate == "epoch" else None
            if program.schedule in ("epoch", "plateau"):
                for scheduler in schedulers:
                    scheduler.step(*([loss] if program.schedule == "plateau" else []))
    return training.final_state(inner, optimizers, schedulers)
