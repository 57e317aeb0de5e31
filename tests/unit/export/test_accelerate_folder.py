"""Folders of Accelerate: equal to what save_state writes at the same place, and continued by load_state."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from golden.hosts import accelerate as golden_accelerate
from golden.make import DATA
from golden.training import STORED, optimizer_of, plain, scheduler_of, small_model
from safetensors.torch import load_file
from stored_models import damage, save_model
from torch import nn

from spot_plugins.errors import ConfigError, CorruptCheckpointError
from spot_plugins.export.accelerate_folder import export_accelerate
from spot_plugins.state import RngPart

WAYS = [(1, False), (2, False), (3, True), (4, True)]


class Net(nn.Module):
    """Tied, frozen and half weights, a buffer, and a random stream."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.mixed = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, x):
        hidden = nn.functional.dropout(self.frozen(self.embedding(x)), 0.5)
        return self.head(self.mixed(hidden.bfloat16()).float())


class WithExtra(Net):
    """The same with extra state that is no tensor, which no safetensors file can hold."""

    def get_extra_state(self):
        return {"version": int(self.count)}

    def set_extra_state(self, state):
        self.count.fill_(state["version"])


class Counter:
    """An object that is registered for checkpointing."""

    def __init__(self, number):
        self.number = number

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def accelerator_of():
    for shared in (AcceleratorState, PartialState, GradientState):
        shared._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=2)


class Training:
    """Two models, each with an optimizer, a scheduler with a Counter in its state, and all random streams."""

    def __init__(self, seed, num_steps=0, kinds=(Net, Net)):
        self.accelerator = accelerator_of()
        self.models = [kind(seed + number) for number, kind in enumerate(kinds)]
        self.optimizers = [
            torch.optim.AdamW([each for each in self.models[0].parameters() if each.requires_grad], lr=0.1),
            torch.optim.SGD(self.models[1].mixed.parameters(), lr=0.1, momentum=0.9),
        ]
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizers[0], [2, 3], 0.5)
        self.custom, self.found = Counter(seed), {}
        self.accelerator.prepare(*self.models, *self.optimizers, self.scheduler)
        self.accelerator.register_for_checkpointing(self.custom)
        self.accelerator.step = seed
        random.seed(seed)
        np.random.seed(seed)
        self.train(num_steps)

    def train(self, num_steps):
        for _ in range(num_steps):
            batch = torch.tensor([random.randrange(5), np.random.randint(5), int(torch.randint(5, ()))])
            for model in self.models:
                model(batch).square().sum().backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.scheduler.step()

    def state(self):
        kinds = (self.models, self.optimizers, [self.scheduler, self.custom, RngPart()])
        return plain([[dict(each.state_dict()) for each in kind] for kind in kinds])

    def save(self, url, **ways):
        """Save it by this package, with the streams of rank 0 as they are, and those of the others drawn from them."""

        def others(rank):
            rng = RngPart()
            state = rng.state_dict() if rank == 0 else rng.for_new_rank(rng.state_dict(), rank)
            named = {"scheduler-0": self.scheduler.state_dict(), "custom-0": self.custom.state_dict()}
            counters = {"step": self.accelerator.step, "iterations": [], "schedules": {"found": self.found}}
            return {**named, "accelerator": counters, "rng": state, "position": {"epoch": 1}}

        models = {f"model-{number}": model for number, model in enumerate(self.models)}
        save_model(str(url), models, self.optimizers, others=others, **ways)


def load(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(("world_size", "is_spread"), WAYS)
def test_the_folder_is_that_of_accelerate(world_size, is_spread, tmp_path):
    """File by file, and stock load_state continues from it, bit for bit, with each random stream."""
    trained = Training(3, num_steps=2)
    trained.save(tmp_path / "run", world_size=world_size, is_spread=is_spread)
    trained.accelerator.save_state(tmp_path / "stock")

    result = export_accelerate(str(tmp_path / "run"), tmp_path / "out")

    streams = {f"random_states_{rank}.pkl" for rank in range(world_size)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == (
        {path.name for path in (tmp_path / "stock").iterdir()} | streams
    )
    for stock in (tmp_path / "stock").iterdir():
        found = tmp_path / "out" / stock.name
        if stock.suffix == ".safetensors":
            assert plain(dict(sorted(load_file(found).items()))) == plain(dict(sorted(load_file(stock).items())))
        else:
            assert plain(load(found)) == plain(load(stock)), stock.name
    of_ranks = [plain(load(tmp_path / "out" / name)) for name in sorted(streams)]
    assert len(set(of_ranks)) == world_size, "each rank has streams of its own"
    assert result.num_tensors == 2 * 6 + 3 * 3 + 2, "of the models, of AdamW, of SGD"
    assert result.notes == ("the position in the data is left out, so the next epoch begins with its first batch",)

    saved = trained.state()
    trained.train(2)
    ended = trained.state()
    again = Training(5)
    assert again.state() != saved
    again.accelerator.load_state(tmp_path / "out")
    assert again.accelerator.step == 3
    assert again.state() == saved
    again.train(2)
    assert again.state() == ended


def test_extra_state_that_is_no_tensor_is_there(tmp_path):
    """The model is a file of torch then, as with safe_serialization=False."""
    trained = Training(3, num_steps=1, kinds=(WithExtra, Net))
    trained.found["optimizer-0-StepLR"] = {"last_epoch": 1}
    trained.save(tmp_path / "run")
    saved = trained.state()

    result = export_accelerate(str(tmp_path / "run"), tmp_path / "out")

    assert result.notes[1:] == ("schedulers that were not prepared are left out, because load_state loads none",)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"pytorch_model.bin", "model_1.safetensors"} <= names
    assert "model.safetensors" not in names
    again = Training(5, kinds=(WithExtra, Net))
    again.accelerator.load_state(tmp_path / "out")
    assert again.state() == saved


@pytest.mark.parametrize("name", ["accelerate", "accelerate-ddp"])
def test_a_checkpoint_of_a_real_training(name, tmp_path):
    """Of one rank, or of two under DDP, in the middle of an epoch: it is the state of a training left alone there."""
    shutil.copytree(DATA / name, tmp_path / "run")
    world_size = 2 if name.endswith("ddp") else 1

    result = export_accelerate(str(tmp_path / "run"), tmp_path / "out")

    accelerator = accelerator_of()
    model = small_model()
    optimizer = optimizer_of(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler_of(optimizer))
    accelerator.load_state(tmp_path / "out")
    found = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "rng": RngPart().state_dict()}
    assert "counts is left out, because load_state loads no such thing" in result.notes
    assert len(list((tmp_path / "out").glob("random_states_*.pkl"))) == world_size
    assert scheduler.state_dict()["last_epoch"] == STORED * world_size
    if world_size == 1:
        wanted = {each.step: each for each in golden_accelerate(None, False)}[STORED].state
        for key, value in found.items():
            assert (plain(key), plain(value)) in wanted[1], key


def test_nothing_is_left_if_it_fails(tmp_path):
    """Another host's run, a damaged blob, a folder that exists, a forged counter."""
    trained = Training(3, num_steps=1)
    save_model(str(tmp_path / "bare"), {"model": trained.models[0]})
    trained.save(tmp_path / "run")
    damage(tmp_path / "run")
    save_model(str(tmp_path / "empty"), {"model": trained.models[0]}, others={"accelerator": {"step": 1}})
    counters = {"accelerator": {}, "rng": RngPart().state_dict()}
    save_model(str(tmp_path / "forged"), {"model-0": trained.models[0]}, others=counters)
    before = sorted(path.name for path in tmp_path.iterdir())

    for run, out, error, message in (
        ("bare", "out", ConfigError, "this run was not trained with Accelerate"),
        ("empty", "out", ConfigError, "no model was prepared in this run"),
        ("run", "run", ConfigError, "exists already: give the path of a new file or folder"),
        ("run", "out", CorruptCheckpointError, "has changed since it was written: its hash differs"),
        ("forged", "out", CorruptCheckpointError, "holds unreadable state: KeyError"),
    ):
        with pytest.raises(error, match=message):
            export_accelerate(str(tmp_path / run), tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
