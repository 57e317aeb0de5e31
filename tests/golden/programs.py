"""
The trainings whose checkpoints lie in ``data/``. Each of them can be run in three ways: without any checkpoint, from
the beginning until a step is stored, and from a stored step to the end.

No number in them depends on the CPU. Weights, gradients and learning rates are small integers and powers of two, so no
operation rounds, and the order of a sum does not matter.
"""

from __future__ import annotations

import pickle
import random
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hearing import until
from launching import exit_codes, launch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from ports import free_port
from torch import nn

from spot_plugins.accelerate import SpotHook
from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition, elastic_loader
from spot_plugins.lightning import SpotCheckpoint
from spot_plugins.session import SpotSession
from spot_plugins.state import ModelPart, OptimizerPart, RngPart
from spot_plugins.testing import run_thread_ranks

EPOCHS = 2
STEPS_PER_EPOCH = 4
STORED = 6
"""The step that is stored: in the middle of the second epoch."""

SETTINGS: dict[str, Any] = {"notice_sources": (), "keep_last": 2}
"""Settings that every program has. Without notice sources nothing depends on the machine."""


class StoppedError(Exception):
    """Ends a training in the middle, as a crash does."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The training of one rank between two steps, as it is when a batch has been taken and not yet trained on."""

    step: int
    samples: Any
    """The batch, or None at the end of the training."""
    state: Any
    """Everything that the training consists of, as :func:`plain` returns it."""


def plain(value: Any) -> Any:
    """Return *value* as nested tuples that are equal exactly if types, bits and order are equal."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        flat = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        return kind, str(value.dtype), tuple(value.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        items = tuple((plain(key), plain(item)) for key, item in value.items())
        return kind, items, getattr(value, "default_factory", None)
    if isinstance(value, set | frozenset):
        return kind, frozenset(plain(item) for item in value)
    if isinstance(value, list | tuple | deque):
        return kind, tuple(plain(item) for item in value), getattr(value, "maxlen", None)
    if isinstance(value, float):
        return kind, value.hex()
    return kind, (value.real.hex(), value.imag.hex()) if isinstance(value, complex) else value


def seed_streams(rank: int = 0) -> None:
    """Begin the global random streams, and draw from each of them."""
    random.seed(10 * rank + 1)
    np.random.seed(10 * rank + 2)
    torch.manual_seed(10 * rank + 3)
    draw()


def draw() -> int:
    """Draw a small integer from each global random stream, and return the sum."""
    return random.randrange(4) + int(np.random.randint(4)) + int(torch.randint(4, ()))


def samples() -> torch.Tensor:
    """Return the data set, a row for each sample."""
    return torch.arange(32.0).view(8, 4)


def small_model() -> nn.Linear:
    """Return a model whose weights are small integers."""
    model = nn.Linear(4, 8)
    with torch.no_grad():
        model.weight.copy_(torch.arange(32).view(8, 4) % 5)
        model.bias.copy_(torch.arange(8))
    return model


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    """Return an optimizer that has state, and whose settings are powers of two."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.5, momentum=0.5)


def scheduler_of(optimizer: Any) -> torch.optim.lr_scheduler.StepLR:
    """Return a scheduler that has changed the learning rate before the stored step."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)


def wait_stored(url: str, step: int, world_size: int = 1) -> None:
    """Wait for the object that is written after everything else of *step*."""
    name = "rank-00000-of-00001.json" if world_size == 1 else "merged.json"
    last = Path(url.removeprefix("file://"), f"steps/{step:010d}-000001", name)
    until(last.exists, f"{last} is stored")


# ------------------------------------------------------------------------------------------- without a framework


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


# ----------------------------------------------------------------------------------------------------- Lightning


class Module(LightningModule):
    """A module that logs, validates and draws from the random streams."""

    def __init__(self, url: str | None, stop: bool, world_size: int) -> None:
        super().__init__()
        self.layer = small_model()
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.records: list[Record] = []
        self._url, self._stop, self._world_size = url, stop, world_size

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step = self.trainer.global_step
        if self._stop and step == STORED:
            assert self._url is not None
            wait_stored(self._url, step, self._world_size)
            raise StoppedError
        self.record(batch)
        self.drawn += draw()
        self.log("first", batch[0, 0], on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validated", batch[0, 0], sync_dist=True, batch_size=len(batch))

    def on_train_end(self) -> None:
        self.record(None)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.layer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler_of(optimizer), "interval": "step"}}

    def train_dataloader(self) -> Any:
        return elastic_loader(samples(), batch_size=2 // self._world_size, seed=5)

    def val_dataloader(self) -> Any:
        return elastic_loader(samples(), batch_size=4 // self._world_size, shuffle=False)

    def record(self, batch: Any) -> None:
        """Remember the present state."""
        trainer = self.trainer
        loops = trainer.fit_loop.state_dict()
        del loops["state_dict"]
        state = {
            "model": dict(self.state_dict()),
            "optimizers": [each.state_dict() for each in trainer.optimizers],
            "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
            "callbacks": [each.state_dict() for each in trainer.callbacks if isinstance(each, EarlyStopping)],
            "metrics": dict(trainer.callback_metrics),
            "loops": loops,
            "epoch": trainer.current_epoch,
            "rng": RngPart().state_dict(),
        }
        self.records.append(Record(step=trainer.global_step, samples=plain(batch), state=plain(state)))


def lightning(url: str | None, stop: bool, rank: int = 0, world_size: int = 1) -> list[Record]:
    """Run one rank of the training of a Lightning module."""
    seed_streams(rank)
    module = Module(url, stop, world_size)
    spot = [] if url is None else [SpotCheckpoint(url, every_steps=STORED, **SETTINGS)]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    callbacks = [EarlyStopping("validated", patience=9), *spot]
    strategy = "auto" if world_size == 1 else "ddp"
    settings = {"devices": world_size, "strategy": strategy, "max_epochs": EPOCHS, "num_sanity_val_steps": 0, **quiet}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, **settings)
    with crash_if(stop):
        trainer.fit(module)
    return module.records


# ---------------------------------------------------------------------------------------------------- Accelerate


def accelerate(url: str | None, stop: bool, rank: int = 0, world_size: int = 1) -> list[Record]:
    """Run one rank of a training loop with Accelerate."""
    for shared in (AcceleratorState, PartialState, GradientState):
        shared._reset_state()
    accelerator = Accelerator(cpu=True)
    seed_streams(rank)
    model = small_model()
    optimizer = optimizer_of(model)
    loader = elastic_loader(samples(), batch_size=2 // world_size, seed=5)
    prepared = model, optimizer, loader, scheduler_of(optimizer)
    model, optimizer, loader, scheduler = accelerator.prepare(*prepared)
    counts = {"drawn": 0}
    records: list[Record] = []

    def record(step: int, epoch: int, batch: torch.Tensor | None) -> None:
        state = {
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "counts": counts,
            "epoch": epoch,
            "rng": RngPart().state_dict(),
        }
        records.append(Record(step=step, samples=plain(batch), state=plain(state)))

    def train_on(batch: torch.Tensor) -> None:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).sum())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        counts["drawn"] += draw()

    if url is None:
        for epoch in range(EPOCHS):
            for number, batch in enumerate(loader):
                record(epoch * STEPS_PER_EPOCH + number, epoch, batch)
                train_on(batch)
        record(EPOCHS * STEPS_PER_EPOCH, EPOCHS, None)
        return records
    with crash_if(stop), SpotHook(accelerator, url, every_steps=STORED, **SETTINGS) as spot:
        spot.register("counts", SimpleNamespace(state_dict=lambda: counts, load_state_dict=counts.update))
        spot.resume()
        for epoch in spot.epochs(EPOCHS):
            for batch in spot.batches(loader):
                record(spot.progress.step, epoch, batch)
                train_on(batch)
                spot.after_step()
                if stop and spot.progress.step == STORED:
                    wait_stored(url, STORED, world_size)
                    raise StoppedError
        record(spot.progress.step, spot.progress.epoch, None)
    return records


@contextmanager
def crash_if(stop: bool) -> Iterator[None]:
    """Let :exc:`StoppedError` pass for the end of the training, where it is to stop."""
    try:
        yield
    except StoppedError:
        assert stop
    else:
        assert not stop


# ---------------------------------------------------------------------------------------- ranks that are processes


def main(name: str, url: str, stop: bool, rank: int, world_size: int, output: str) -> None:
    """Run one rank in a process of its own. *output* is the file for its records."""
    records = {"lightning": lightning, "accelerate": accelerate}[name](url, stop, rank, world_size)
    Path(output).write_bytes(pickle.dumps(records))


def two_processes(name: str, url: str | None, stop: bool) -> list[list[Record]]:
    """Run two processes that train together. Without *url* the checkpoints go where nobody looks for them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = url or f"file://{folder}/run"
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
        ranks = [
            launch(
                "golden.programs",
                (name, url, stop, rank, 2, str(folder / f"records-{rank}")),
                environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                output=folder / f"output-{rank}",
            )
            for rank in range(2)
        ]
        codes = exit_codes(ranks)
        assert codes == [0, 0], (codes, [(folder / f"output-{rank}").read_text()[-3000:] for rank in range(2)])
        return [pickle.loads((folder / f"records-{rank}").read_bytes()) for rank in range(2)]


PROGRAMS: dict[str, Callable[[str | None, bool], list[list[Record]]]] = {
    "bare": lambda url, stop: [bare(url, stop, has_values=True)],
    "two-ranks": two_ranks,
    "frozen": lambda url, stop: [bare(url, stop, has_frozen=True, stored=(4, STORED))],
    "lightning": lambda url, stop: [lightning(url, stop)],
    "lightning-ddp": lambda url, stop: two_processes("lightning", url, stop),
    "accelerate": lambda url, stop: [accelerate(url, stop)],
    "accelerate-ddp": lambda url, stop: two_processes("accelerate", url, stop),
}
"""
The trainings by the names of their folders in ``data/``. Called with the run's URL, or None for no checkpoints, and
with True to stop when step :data:`STORED` is stored. They return the records of every rank.
"""
