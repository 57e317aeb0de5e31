"""The adapter of Accelerate, written as docs/tutorials/accelerate.md does."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from contract.hosts import training

from spot_plugins.accelerate import SpotHook


def validate(net, accelerator, spot, epoch, probe):
    losses = []
    net.eval()
    may_leave = accelerator.sync_gradients  # within an accumulation there is nothing to save
    with spot.pause() if may_leave else nullcontext(), torch.no_grad():
        for number, batch in enumerate(training.make_validation_loader()):
            probe.come_to("validation")
            spot.check()
            losses.append(training.loss_of(accelerator.unwrap_model(net), batch))
            probe.validated(epoch, spot.progress.step, number, losses[-1])
    net.train()
    return sum(losses)


def train(program, url, probe):
    """Train *program* at *url* and return its final state."""
    for state in (AcceleratorState, PartialState, GradientState):  # a new process has none
        state._reset_state()
    data = DataLoaderConfiguration(use_stateful_dataloader=program.loader == "stateful")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=program.accumulate, dataloader_config=data)
    torch.manual_seed(1)
    net = training.Net(program.width)
    optimizers = training.make_optimizers(program, net)
    schedulers = training.make_schedulers(program, optimizers)
    with SpotHook(accelerator, url, every_steps=program.every_steps, on_event=probe.on_event) as spot:
        probe.host = spot
        net = accelerator.prepare(net)
        optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
        schedulers = [accelerator.prepare(scheduler) for scheduler in schedulers]
        loaders = [accelerator.prepare(loader) for loader in training.make_loaders(program)]
        number = spot.resume().batches
        for epoch in spot.epochs(program.num_epochs):
            for batches in zip(*map(spot.batches, loaders), strict=False):
                number += 1
                if program.validates_before(number):
                    validate(net, accelerator, spot, epoch, probe)
                probe.come_to("batch")
                batch = training.joined(batches)
                with accelerator.accumulate(net):
                    loss = training.loss_of(net, batch)
                    probe.trained(epoch, spot.progress.step, batch[0], training.rates(optimizers), loss)
                    accelerator.backward(loss)
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                    if program.schedule == "step":
                        for scheduler in schedulers:
                            scheduler.step()
                spot.after_step()
            number = 0
            probe.come_to("epoch end")
            loss = validate(net, accelerator, spot, epoch, probe) if program.validate == "epoch" else None
            if program.schedule in ("epoch", "plateau"):
                for scheduler in schedulers:
                    scheduler.step(*([loss] if program.schedule == "plateau" else []))
    return training.final_state(
        accelerator.unwrap_model(net),
        [optimizer.optimizer for optimizer in optimizers],
        [scheduler.scheduler for scheduler in schedulers],
    )
