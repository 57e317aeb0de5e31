"""A training loop without a framework, of one rank or of ranks that are threads."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from golden.training import (
    EPOCHS,
    SETTINGS,
    STORED,
    Record,
    draw,
    optimizer_of,
    plain,
    samples,
    scheduler_of,
    seed_streams,
    small_model,
    wait_stored,
)
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition, elastic_loader
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart, RngPart
from spot_plugins.testing import run_thread_ranks


class Holder:
    """A part that holds a state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def every_kind_of_value() -> dict[str, Any]:
    """Return a state with every type and every dtype that format 1 knows."""
    reals = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    signed = (torch.int64, torch.int32, torch.int16, torch.int8)
    unsigned = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    numbers = torch.arange(6).view(2, 3)
    base = torch.arange(12.0).view(3, 4)
    names = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
    return {
        "tensors": {str(dtype): numbers.to(dtype) for dtype in (*reals, *signed, *unsigned, torch.bool)},
        "complex": {str(dtype): torch.complex(base, -base).to(dtype) for dtype in (torch.complex64, torch.complex128)},
        "shapes": [torch.tensor(7), torch.zeros(0, 3), base.t(), base[1:], base, base],
        "special": torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0]),
        "arrays": [np.arange(4).astype(name) for name in names.split()] + [np.arange(4, dtype=">i2")],
        "scalars": [np.dtype(name).type(1) for name in names.split()],
        "plain": [None, True, False, 0, -1, 2**63, 2**64, -(2**80), 0.5, "text", "\u00e4\u20ac", "", b"\x00\xff"],
        "floats": [float("inf"), float("-inf"), float("nan"), -0.0, 1 + 2j],
        "collections": [(), (1, "a"), {3, 1, 2}, frozenset({"b", "a"}), deque([1, 2]), deque([1], maxlen=3), [], {}],
        "dicts": [
            {"b": 1, "a": 2},
            {1: "int", "$key": "dollar", (1, 2): "tuple", None: torch.tensor([1, 2])},
            OrderedDict(z=1, a=2),
            Counter(b=2, a=1),
            defaultdict(list, {"k": [1]}),
        ],
        "others": [PurePosixPath("a/b"), timedelta(1, 2, 3), torch.Size([2, 3]), torch.bfloat16, torch.device("cpu")],
        "slash/and%percent": torch.tensor([1, 2], dtype=torch.int16),
    }


class BareTraining:
    """A training loop of one rank that has its own state: a generator, and sums over what it has seen."""

    def __init__(self, rank: int, world_size: int, *, has_streams: bool, has_frozen: bool) -> None:
        # Ranks that are threads have the global streams in common, and each rank's loader borrows them.
        self.has_streams = has_streams
        self.model = nn.ModuleDict({"trained": small_model()})
        if has_frozen:
            self.model["base"] = nn.Linear(64, 64).requires_grad_(False)
            nn.init.zeros_(self.model["base"].weight)
            nn.init.zeros_(self.model["base"].bias)
        self.optimizer = optimizer_of(self.model)
        self.scheduler = scheduler_of(self.optimizer)
        self.generator = torch.Generator().manual_seed(10 + rank)
        self.own = {"rank": rank, "seen": torch.zeros(4), "drawn": torch.zeros((), dtype=torch.int64)}
        self.values = Holder()
        self.loader: Any = elastic_loader(samples(), batch_size=2 // world_size, seed=5)
        self.loader.sampler.bind(num_replicas=world_size, rank=rank)
        self.position = LoaderPosition(self.loader, world_size)
        self.batches_done = 0
        self.step = 0
        self.records: list[Record] = []

    def begin(self, *, has_values: bool) -> None:
        """Begin a new run: what is still empty gets its content."""
        if "base" in self.model:
            with torch.no_grad():
                self.model["base"].weight.copy_(torch.arange(64 * 64).view(64, 64) % 7)
                self.model["base"].bias.copy_(torch.arange(64))
        if has_values:
            self.values.state = every_kind_of_value()

    def register(self, session: SpotSession) -> None:
        """Register everything with *session*."""
        session.register("model", ModelPart(self.model), replicated=ModelPart.replicated)
        session.register("optimizer", OptimizerPart(self.optimizer, self.model), replicated=OptimizerPart.replicated)
        session.register("scheduler", self.scheduler)
        session.register("own", SimpleNamespace(state_dict=lambda: self.own, load_state_dict=self.own.update))
        session.register("values", self.values)
        stream = self.generator
        session.register("generator", SimpleNamespace(state_dict=stream.get_state, load_state_dict=stream.set_state))
        place = self.position
        session.register(
            "position",
            SimpleNamespace(
                state_dict=lambda: place.state_dict(self.batches_done), load_state_dict=place.load_state_dict
            ),
        )
        if self.has_streams:
            session.register("rng", RngPart())

    def steps(self) -> Iterator[int]:
        """Train to the end. Yield the number of steps after each step."""
        for epoch in range(self.position.epoch, EPOCHS):
            self.position.begin_epoch(epoch)
            self.batches_done = 0
            for batch in self.loader:
                self.batches_done += 1
                self.record(batch)
                self.train_on(batch)
                self.own["drawn"] += int(torch.randint(4, (), generator=self.generator))
                self.own["drawn"] += draw() if self.has_streams else 0
                self.step += 1
                yield self.step
        self.record(None)

    def train_on(self, batch: torch.Tensor) -> None:
        """Train on the step's number, so that the ranks need not add up gradients; sum up the batch."""
        self.optimizer.zero_grad()
        self.model["trained"](torch.full((1, 4), float(self.step))).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.own["seen"] = self.own["seen"] + batch.sum(0)

    def record(self, batch: torch.Tensor | None) -> None:
        """Remember the present state."""
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "own": self.own,
            "values": self.values.state,
            "generator": self.generator.get_state(),
            "epoch": self.position.epoch,
            "rng": RngPart().state_dict() if self.has_streams else None,
        }
        self.records.append(Record(step=self.step, samples=plain(batch), state=plain(state)))


@contextmanager
def session_of(url: str, ranks: Any) -> Iterator[SpotSession]:
    """An open session that saves only when it is told to."""
    session = SpotSession(SpotConfig(url=url, every_steps=10**6, **SETTINGS), ranks=ranks)
    try:
        yield session
    finally:
        session.close()


def bare(
    url: str | None,
    stop: bool,
    *,
    ranks: Any = None,
    stored: tuple[int, ...] = (STORED,),
    has_values: bool = False,
    has_frozen: bool = False,
) -> list[Record]:
    """Run one rank of the training without a framework. *stored* are the steps that are saved before it stops."""
    has_streams = ranks is None
    if has_streams:
        seed_streams()
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    training = BareTraining(rank, world_size, has_streams=has_streams, has_frozen=has_frozen)
    if url is None:
        training.begin(has_values=has_values)
        list(training.steps())
        return training.records
    with session_of(url, ranks) as session:
        training.register(session)
        step = session.resume()
        if step is None:
            training.begin(has_values=has_values)
        training.step = step or 0
        for step in training.steps():
            session.after_step(step)
            if stop and step in stored:
                session.save(step)
                wait_stored(url, step, world_size)
                if step == stored[-1]:
                    return training.records
        session.finish(training.step)
    return training.records


def two_ranks(url: str | None, stop: bool) -> list[list[Record]]:
    """Run two ranks as threads."""
    return run_thread_ranks(2, lambda ranks: bare(url, stop, ranks=ranks))
