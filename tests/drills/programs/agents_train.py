"""
One rank of a training under torchrun, whose number of agents changes. Run by agent_jobs.py.

Every rank appends what each batch saw to FOLDER/trace.jsonl, as ``[attempt, step, rank, ranks, time, samples]``, and
the attempt and the step after which it continues to FOLDER/resumed.jsonl. A step is slow until FOLDER/fast exists.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings

import torch
import torch.distributed as dist
from drill_settings import Settings
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition, elastic_loader
from spot_plugins.session import SpotSession

SEED = 7
SLOW_S = 0.5


def model_and_optimizer():
    """Return a new model, whose result depends on the order of its steps, and its optimizer."""
    torch.manual_seed(1)
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def loss_of(model, samples):
    """Return the loss of a batch."""
    return (model(samples / 1000) - 1).square().mean()


def main(settings):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def append(name, line):
        with (settings.path / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    model, optimizer = model_and_optimizer()
    model = DistributedDataParallel(model)
    data = TensorDataset(torch.arange(settings.samples, dtype=torch.float64).unsqueeze(1))
    loader = elastic_loader(data, batch_size=settings.batch, seed=SEED)
    position = LoaderPosition(loader, ranks)
    done = 0

    class Position:
        state_dict = staticmethod(lambda: position.state_dict(done))
        load_state_dict = staticmethod(position.load_state_dict)

    config = SpotConfig(url=settings.run, every_steps=settings.every_steps, grace_seconds=20, **settings.config)
    with SpotSession(config) as session:
        session.handle_signals()
        session.register_model(model, [optimizer])
        session.register("position", Position())
        step = session.resume() or 0
        if rank == 0:
            append("resumed", [session.attempt, step])
        (settings.path / f"rank-of-{os.environ['SPOT_DRILL_AGENT']}").write_text(f"{rank} {os.getpid()}")
        position.begin_epoch(0)
        iterator = iter(loader)
        position.fast_forward(iterator)
        for (samples,) in iterator:
            if not (settings.path / "fast").exists():
                time.sleep(SLOW_S)
            optimizer.zero_grad()
            loss_of(model, samples).backward()
            optimizer.step()
            done += 1
            step += 1
            seen = [int(sample) for sample in samples.flatten()]
            append("trace", [session.attempt, step, rank, ranks, time.monotonic(), seen])
            session.after_step(step)
        session.finish(step)
        append("finished", [session.attempt, step, model.module.weight.item()])


if __name__ == "__main__":
    main(Settings.decode(sys.argv[1]))
