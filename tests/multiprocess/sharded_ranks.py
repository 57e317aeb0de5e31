"""
One rank of a job whose state is spread over the ranks. Run by test_sharded.py.

What is compared with is torch's own: ``get_state_dict`` with everything gathered, an implementation that shares
nothing with ours.
"""

from __future__ import annotations

import os
from functools import partial

import torch
import torch.distributed as dist
from documented import block_of
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from spot_plugins.config import SpotConfig
from spot_plugins.events import Resumed
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart, RngPart


class Net(nn.Module):
    """Odd sizes, so that shards are uneven and some ranks have none; tied, frozen and bfloat16 weights; a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.mixed = nn.Linear(8, 5, dtype=torch.bfloat16)
        self.out = nn.Linear(5, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.tiny = nn.Linear(6, 1)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.num_calls += 1
        h = torch.tanh(self.hidden(self.embedding(x)))
        h = self.out(self.mixed(h.to(torch.bfloat16)).float())
        return self.head(h + self.frozen(h) * self.tiny(h))


UNITS = ("hidden", "mixed", "out", "frozen", "tiny")


def fsdp1(net, world, *, orig, strategy=ShardingStrategy.FULL_SHARD, mesh=None):
    wrap = partial(
        FullyShardedDataParallel,
        device_id=torch.device("cpu"),
        use_orig_params=orig,
        sharding_strategy=strategy,
        device_mesh=mesh,
    )
    for unit in UNITS:
        setattr(net, unit, wrap(getattr(net, unit)))
    return wrap(net)


def fsdp2(net, world, *, mesh=None):
    for unit in UNITS:
        fully_shard(getattr(net, unit), mesh=mesh)
    return fully_shard(net, mesh=mesh)


def tensor_parallel(net, mesh):
    # Not the embedding and the head: they share their weight.
    parallelize_module(net, mesh, {"hidden": ColwiseParallel(), "mixed": RowwiseParallel()})


def tp(net, world):
    tensor_parallel(net, init_device_mesh("cpu", (world,)))
    return net


def fsdp2_with_tp(net, world):
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
    tensor_parallel(net, mesh["tp"])
    return fsdp2(net, world, mesh=mesh["dp"])


def replicas(world):
    return init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))


WRAPPERS = {
    "ddp": lambda net, world: DistributedDataParallel(net),
    "fsdp1": lambda net, world: fsdp1(net, world, orig=True),
    "fsdp1-flat": lambda net, world: fsdp1(net, world, orig=False),
    "fsdp2": fsdp2,
    "hsdp1": lambda net, world: fsdp1(
        net, world, orig=True, strategy=ShardingStrategy.HYBRID_SHARD, mesh=replicas(world)
    ),
    "hsdp2": lambda net, world: fsdp2(net, world, mesh=replicas(world)),
    "no-shard": lambda net, world: fsdp1(net, world, orig=True, strategy=ShardingStrategy.NO_SHARD),
    "tp": tp,
    "fsdp2+tp": fsdp2_with_tp,
}


class Training:
    """A model, two optimizers and a session at *url*. *load* is called before it resumes."""

    def __init__(self, wrapper, url, seed, world, load=lambda training: None):
        torch.manual_seed(seed)
        self.heard = []
        self.model = WRAPPERS[wrapper](Net(), world)
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if "hidden" not in name]
        others = [p for name, p in trained if "hidden" in name]
        self.optimizers = [
            torch.optim.AdamW(matrices, lr=0.1, foreach="tp" not in wrapper),
            torch.optim.SGD(others, lr=0.1, momentum=0.9, foreach="tp" not in wrapper),
        ]
        self.session = SpotSession(SpotConfig(url=url, every_steps=1000, keep_last=1), on_event=[self.heard.append])
        self.session.register("model", ModelPart(self.model), replicated=ModelPart.replicated)
        for number, optimizer in enumerate(self.optimizers):
            part = OptimizerPart(optimizer, self.model)
            self.session.register(f"optimizer-{number}", part, replicated=OptimizerPart.replicated)
        self.session.register("rng", RngPart())
        load(self)
        self.step = self.session.resume() or 0

    def train(self):
        generator = torch.Generator().manual_seed(self.step)
        loss = self.model(torch.randint(0, 11, (7,), generator=generator)).square().mean()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def named(self):
        """Return what it has, by the names of the documents."""
        return {"model": self.model, "optimizer": self.optimizers}

    def gathered(self):
        """Everything, whole, on every rank: by torch's own means."""
        model, optimizers = get_state_dict(
            self.model, self.optimizers, options=StateDictOptions(full_state_dict=True, ignore_frozen_params=False)
        )
        return {"model": model, "optimizers": {k: v for k, v in flattened(optimizers) if "param_groups" not in k}}


def flattened(state, path=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def save(rank, world, port, wrapper, url, gathered):
    """Train three steps, save them, and write down what they came to."""
    join(rank, world, port)
    training = Training(wrapper, url, seed=1, world=world)
    for _ in range(3):
        training.train()
    training.session.finish(training.step)
    state = training.gathered()
    if rank == 0:
        torch.save(state, gathered)
    leave()


def load(rank, world, port, wrapper, saved):
    """Load each of the checkpoints in *saved*, and compare it with what was written down. Then train one more step."""
    join(rank, world, port)
    for url, gathered, saved_by in saved:
        training = Training(wrapper, url, seed=2, world=world)
        assert training.step == 3, url
        (resumed,) = [event for event in training.heard if isinstance(event, Resumed)]
        assert resumed.from_world_size == saved_by
        assert_equal(training.gathered(), torch.load(gathered), url)
        training.train()
        training.session.close()
    leave()


def go_on(rank, world, port, wrapper, url, gathered, whole):
    """Load and train two more steps: the same, bit for bit, as five steps without a break."""
    join(rank, world, port)
    training = Training(wrapper, url, seed=2, world=world)
    while training.step < 5:
        training.train()
    state = training.gathered()
    training.session.close()
    unbroken = Training(wrapper, whole, seed=1, world=world)
    while unbroken.step < 5:
        unbroken.train()
    assert_equal(state, unbroken.gathered(), wrapper)
    unbroken.session.close()
    leave()


def move_in(rank, world, port, wrapper, url, exported):
    """Begin a run with each of the directories in *exported*. It has all of their state, and so has its next life."""
    join(rank, world, port)
    block = block_of("docs/commands/import.md", "dcp.load").text
    for number, (folder, gathered) in enumerate(exported):
        os.chdir(folder)
        training = Training(wrapper, f"{url}-{number}", 2, world, lambda made: exec(block, made.named()))
        assert training.step == 0
        assert_equal(training.gathered(), torch.load(gathered), folder)
        training.session.finish(1)
        again = Training(wrapper, f"{url}-{number}", 3, world)
        assert again.step == 1
        assert_equal(again.gathered(), torch.load(gathered), folder)
        again.session.close()
    leave()


def assert_equal(one, other, where):
    one, other = dict(flattened(one)), dict(flattened(other))
    assert one.keys() == other.keys(), (where, one.keys() ^ other.keys())
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, (where, name)
            assert torch.equal(value, other[name]), (where, name)
        else:
            assert value == other[name], (where, name)


def join(rank, world, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)


def leave():
    dist.barrier()
    dist.destroy_process_group()


def main(what, *arguments):
    globals()[what](*arguments)
