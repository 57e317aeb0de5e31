"""
One rank of a training that loses ranks in its last save: ``main(folder, rank, ranks, address, settings)``.

Run by test_survivors.py. The state is that of a real model: BatchNorm and Dropout, AdamW, random streams, and a
position of the rank's own.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from hearing import pusher_pid, until
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.leave import lost_shares
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart

NUM_STEPS = 12
FIRST_SAVE = 3
NOTICE_AT = 6


def main(folder, rank, ranks, address, settings):
    """
    Train. ``notice``: whether rank 0 gets a notice after a step; ``flips``: the rank whose state changes by some bits
    after the step ``flips_at``; ``wrapper``: ``ddp`` or ``fsdp``; ``grace_s``: that of the session.
    """
    host, port = address
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lost_shares.TURN_S = 2.0
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        train(Path(folder), rank, settings)
    except Preempted:
        os._exit(143)  # without the end of the process group, which waits for ranks that were killed
    os._exit(0)


class Position:
    """The batches that this rank has seen."""

    def __init__(self, rank):
        self.seen = [rank]

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def build(wrapper):
    torch.manual_seed(3)
    norm = [nn.LayerNorm(32)] if wrapper == "fsdp" else [nn.BatchNorm1d(32)]
    net = nn.Sequential(nn.Linear(16, 32), *norm, nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 4))
    model = fully_shard(net) if wrapper == "fsdp" else DistributedDataParallel(net)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(folder, rank, settings):
    config = SpotConfig(
        url=f"{folder.as_uri()}/run", every_steps=1000, grace_seconds=settings.get("grace_s", 60.0), local_dir=None
    )
    model, optimizer = build(settings.get("wrapper", "ddp"))
    position = Position(rank)
    with SpotSession(config) as session:
        session.register_model(model, [optimizer])
        session.register("rng", RngPart())
        session.register("position", position)
        torch.manual_seed(100 + rank)  # of the rank's own from here on
        step = session.resume() or 0
        (folder / f"pids-{rank}").write_text(f"{os.getpid()} {pusher_pid(session)}")
        while step < NUM_STEPS:
            step += 1
            inputs = torch.randn(8, 16)
            position.seen.append(round(float(inputs.sum()), 3))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            if step == settings.get("flips_at") and rank == settings["flips"]:
                flip(model, optimizer)
            session.after_step(step)
            if step == FIRST_SAVE and session.resumed_from is None:
                session.save(step)
                until(lambda: session.last_committed_step == FIRST_SAVE, "the first save is stored")
                dist.barrier()
            if step == NOTICE_AT and settings.get("notice") and rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: session.notice is not None, "the notice is known")
        session.finish(step)
        torch.save(
            [model.state_dict(), optimizer.state_dict(), torch.get_rng_state(), position.seen], final(folder, rank)
        )


def final(folder, rank):
    return folder / f"final-{rank}.pt"


def flip(model, optimizer):
    """Change one bit of each weight tensor and of its momentum. No other rank sees it, because gradients are summed."""
    for weight in model.parameters():
        for tensor in (weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]):
            tensor.view(torch.int32).view(-1)[-1] ^= 1 << 10
