"""Trainings that end in a bad way, for check 13. ``python -m gpu.lives VERB DEVICE FOLDER FAULT`` runs one."""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.errors import Preempted
from spot_plugins.events import Leaving

from .training import Events, outcome, session_of, synchronize


def main():
    verb, device, folder, fault = sys.argv[1:]
    {"broken": broken, "resumed": resumed, "rank": rank}[verb](device, folder, fault)


def build(device, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(256, 1024), nn.Linear(1024, 256)).to(device)
    return model, torch.optim.AdamW(model.parameters())


def train(model, optimizer, device):
    optimizer.zero_grad()
    model(torch.randn(16, 256, device=device)).square().mean().backward()
    optimizer.step()


def broken(device, folder, fault):
    """Train three steps, stage the third, and run into *fault*."""
    model, optimizer = build(device)
    events = Events()
    with session_of(folder, model, [optimizer], events) as session:
        session.resume()
        for step in (1, 2, 3):
            train(model, optimizer, device)
            session.after_step(step)
        session.save(3)
        outcome(events, 3, 30)
        print("ready", flush=True)
        if fault == "assert":
            torch.zeros(2, device=device)[torch.tensor([5], device=device)]
            synchronize(device)
        else:
            torch.empty(2**44, dtype=torch.uint8, device=device)
        print("nothing broke", flush=True)


def resumed(device, folder, fault):
    """Print the step from which the next life continues."""
    model, optimizer = build(device, seed=1)
    with session_of(folder, model, [optimizer]) as session:
        print(f"resumed {session.resume()}", flush=True)


def rank(device, folder, fault):
    """Train on two ranks until a notice, and print the step with which this rank leaves."""
    dist.init_process_group("gloo")
    model, optimizer = build(device)
    wrapped = DistributedDataParallel(model)
    events = Events()
    try:
        with session_of(folder, wrapped, [optimizer], events, grace_seconds=20) as session:
            session.handle_signals()
            step = session.resume() or 0
            end = time.monotonic() + 60
            while time.monotonic() < end:
                train(wrapped, optimizer, device)
                synchronize(device)
                step += 1
                session.after_step(step)
                if step == 10:
                    print("ready", flush=True)
    except Preempted:
        left = events.of(Leaving)
        print(f"left {left[-1][1].step}", flush=True)
        sys.stdout.flush()
        os._exit(Preempted.EXIT_CODE)


if __name__ == "__main__":
    main()
