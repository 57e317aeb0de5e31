"""Ordinary Accelerate programs, interrupted by a notice and by a kill between two saves, and equal in every bit."""

from __future__ import annotations

import signal
from functools import partial

import launching
import pytest
import torch
from accelerate.utils import DataLoaderConfiguration, find_executable_batch_size
from exactness import References, assert_same_training
from loops import Numbers, assert_exact
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from spot_plugins.data import elastic_loader

pytestmark = [pytest.mark.sampled, pytest.mark.filterwarnings("ignore:fetching .* batches again:UserWarning")]

ENDS = [("term", 6), ("kill", 6)]
"""Batches of two lives, before which they end. An epoch has ten batches, and every third step is saved."""


class Program:
    """A usual training. The kinds override what they do otherwise."""

    def __init__(self, life):
        self.life = life
        self.accelerator = life.accelerator

    @classmethod
    def train(cls, life):
        cls(life).run()

    def run(self):
        with self.life.hook() as self.spot:
            self.net = self.life.net()
            self.make()
            optimizers = self.make_optimizers()
            self.net, self.loader, *self.optimizers = self.accelerator.prepare(
                self.net, self.make_loader(), *optimizers
            )
            self.spot.resume()
            for epoch in self.spot.epochs(2):
                self.begin_epoch()
                for index, x in self.spot.batches(self.loader):
                    with self.accelerator.accumulate(self.net):
                        loss = self.train_on(x)
                    self.life.point(epoch, index.tolist(), loss)
                    self.spot.after_step()
                    self.life.stored()
                with self.spot.pause():
                    self.validate(epoch)
        self.life.final = [optimizer.state_dict() for optimizer in optimizers] + self.further_state()

    def make(self):
        """Make and register what there is beside the net."""

    def make_optimizers(self):
        return [torch.optim.Adam(self.net.parameters(), lr=0.02)]

    def make_loader(self):
        return elastic_loader(Numbers(20), batch_size=2, seed=3)

    def begin_epoch(self):
        self.net.train()

    def train_on(self, x):
        loss = self.net(x).square().mean()
        self.accelerator.backward(loss)
        self.clip()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def clip(self): ...

    def validate(self, epoch):
        self.net.eval()
        self.note(epoch, self.net)

    def note(self, epoch, net):
        with torch.no_grad():
            self.life.trace["validation", epoch] = net(torch.ones(2, 4)).tolist()

    def further_state(self):
        return []


class Clipped(Program):
    def clip(self):
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.net.parameters(), 0.1)


class ClippedByValue(Program):
    def clip(self):
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_value_(self.net.parameters(), 0.01)


class ThreeOptimizers(Program):
    """Two critics and a generator that steps on every third batch."""

    def make(self):
        self.critics = [self.accelerator.prepare(self.life.net()) for _ in range(2)]

    def make_optimizers(self):
        return [torch.optim.Adam(net.parameters(), lr=0.02, betas=(0.5, 0.9)) for net in [*self.critics, self.net]]

    def train_on(self, x):
        losses = []
        for critic, optimizer in zip(self.critics, self.optimizers[:2], strict=True):
            optimizer.zero_grad()
            losses.append(critic(x + torch.randn_like(x)).mean() + self.net(x).detach().square().mean())
            self.accelerator.backward(losses[-1])
            optimizer.step()
        if (self.spot.progress.step + 1) % 3 == 0:
            self.optimizers[2].zero_grad()
            losses.append(self.net(x).square().mean())
            self.accelerator.backward(losses[-1])
            self.optimizers[2].step()
        return [loss.item() for loss in losses]


class Averaged(Program):
    """Validates an average of the weights, which is registered."""

    def make(self):
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.spot.register("average", self.average)

    def train_on(self, x):
        loss = super().train_on(x)
        self.average.update_parameters(self.net)
        return loss

    def validate(self, epoch):
        self.average.eval()
        self.note(epoch, self.average)

    def further_state(self):
        return [dict(self.average.state_dict())]


class ScheduleFree(torch.optim.Optimizer):
    """Trains at one point and gives another in ``eval()``, as the schedule-free optimizers do."""

    def __init__(self, parameters, lr=0.05, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "is_training": False, "num_steps": 0})

    def train(self):
        self._move(True, lambda group: 1 - group["beta"])

    def eval(self):
        self._move(False, lambda group: 1 - 1 / group["beta"])

    @torch.no_grad()
    def _move(self, is_training, weight):
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["is_training"] != is_training and "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight(group))
            group["is_training"] = is_training

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["is_training"]
            group["num_steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                z = self.state[parameter].setdefault("z", parameter.clone())
                parameter.lerp_(z, 1 / group["num_steps"])
                parameter.add_(parameter.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["num_steps"]) - 1))
                z.sub_(parameter.grad, alpha=group["lr"])


class WithoutSchedule(Program):
    def make_optimizers(self):
        return [ScheduleFree(self.net.parameters())]

    def begin_epoch(self):
        super().begin_epoch()
        self.optimizers[0].train()

    def validate(self, epoch):
        self.optimizers[0].eval()
        super().validate(epoch)


class Lion(torch.optim.Optimizer):
    """An optimizer of the user's own."""

    def __init__(self, parameters, lr=0.01, betas=(0.9, 0.99)):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                parameter.sub_(average.lerp(parameter.grad, 1 - group["betas"][0]).sign(), alpha=group["lr"])
                average.lerp_(parameter.grad, 1 - group["betas"][1])


class OwnOptimizer(Program):
    def make_optimizers(self):
        return [Lion(self.net.parameters())]


class WithAdafactor(Program):
    def make_optimizers(self):
        return [torch.optim.Adafactor(self.net.parameters(), lr=0.05)]


class WithMuon(Program):
    """Muon for matrices, Adam for the rest."""

    def make_optimizers(self):
        matrices = [parameter for parameter in self.net.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in self.net.parameters() if parameter.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.05), torch.optim.Adam(others, lr=0.02)]


class Mixed(IterableDataset):
    """Two streams by turns, mapped in batches of three, and shuffled in a buffer of four."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        buffer = []
        for number in self.mapped():
            buffer.append((number, torch.sin(torch.arange(1.0, 5.0) * (number + 1))))
            if len(buffer) == 4:
                yield buffer.pop(int(torch.randint(4, (), generator=generator)))
        yield from buffer

    def mapped(self):
        numbers = [number + first for number in range(10) for first in (0, 100)]
        for start in range(0, len(numbers), 3):
            yield from reversed(numbers[start : start + 3])


class Streamed(Program):
    def make_loader(self):
        return DataLoader(Mixed(), batch_size=2)


class PlainLoader(Program):
    def make_loader(self):
        return DataLoader(Numbers(20), batch_size=2, shuffle=True)


KINDS = [
    Program,
    Clipped,
    ClippedByValue,
    ThreeOptimizers,
    Averaged,
    WithoutSchedule,
    OwnOptimizer,
    WithAdafactor,
    *([WithMuon] if hasattr(torch.optim, "Muon") else []),
    Streamed,
    PlainLoader,
]


@pytest.mark.parametrize("kind", KINDS)
def test_programs(kind, tmp_path):
    """The trace, the weights and the state of the optimizers are those of the program left alone."""
    assert_exact(kind.train, tmp_path, *ENDS, every_steps=3)


@pytest.mark.parametrize("kind", [Clipped, Averaged, WithoutSchedule])
def test_programs_that_accumulate(kind, tmp_path):
    """The same holds if a step takes three batches, and one at the end of an epoch."""
    assert_exact(kind.train, tmp_path, ("term", 8), ("kill", 9), every_steps=2, gradient_accumulation_steps=3)


@pytest.mark.parametrize("is_seedable", [True, False])
def test_the_sampler_of_a_plain_loader(is_seedable, tmp_path):
    """Accelerate replaces it by one with a seed for each epoch, or leaves it."""
    config = DataLoaderConfiguration(use_seedable_sampler=is_seedable, data_seed=7 if is_seedable else None)
    assert_exact(PlainLoader.train, tmp_path, *ENDS, every_steps=3, dataloader_config=config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("first", "then"), [("eager", "eager"), ("no", "eager"), ("eager", "no")])
def test_a_compiled_model(first, then, tmp_path):
    """A life is compiled or not, whatever the one before was."""
    again = {"dynamo_backend": then}
    assert_exact(Program.train, tmp_path, *ENDS, every_steps=3, again=again, dynamo_backend=first)


def folds(life):
    """Train three folds, each as a run of its own."""
    url, finals = life.url, []
    for fold in range(3):
        life.url = f"{url}-{fold}"
        torch.manual_seed(fold)
        before = life.trace
        life.trace = {}
        try:
            Program.train(life)
        finally:
            life.trace = before | {(fold, key): record for key, record in life.trace.items()}
        finals.append(life.final)
        life.accelerator.free_memory()
    life.final = finals


def test_three_folds_in_one_process(tmp_path):
    """Folds that are done are not trained again, and the others continue."""
    assert_exact(folds, tmp_path, ("term", 5), ("kill", 27), every_steps=3)


def test_ctrl_c(tmp_path):
    """The next life continues."""
    assert_exact(Program.train, tmp_path, ("ctrl-c", 5), ("ctrl-c", 8), every_steps=3)


def executable(life):
    """Look for a batch size that fits into memory, which is two."""

    class Sized(Program):
        def make_loader(self):
            return elastic_loader(Numbers(20), batch_size=batch_size, seed=3)

        def train_on(self, x):
            if len(x) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().train_on(x)

    @find_executable_batch_size(starting_batch_size=3)
    def train(size):
        nonlocal batch_size
        batch_size = size
        life.models.clear()
        life.accelerator.free_memory()
        torch.manual_seed(1)
        Sized.train(life)

    batch_size = None
    train()


def test_a_batch_size_that_is_looked_for(tmp_path):
    """Each life tries a larger one first."""
    assert_exact(executable, tmp_path, *ENDS, every_steps=3)


train = partial(launching.train, "accelerate_train")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return References(train, tmp_path_factory.mktemp)


PAIR = {"ranks": 2, "samples": 83, "loader": "plain"}
ON_TWO_RANKS = {
    "split_batches": ({"split_batches": True}, "SIGTERM"),
    "split_batches, killed": ({"split_batches": True}, "SIGKILL"),
    "uneven batches, an order by the stream": ({"even_batches": False, "use_seedable_sampler": False}, "SIGTERM"),
    "dispatched by the first rank": ({"dispatch_batches": True}, "SIGTERM"),
    "dispatched by the first rank, killed": ({"dispatch_batches": True}, "SIGKILL"),
    "an order by a seed": ({"use_seedable_sampler": True, "data_seed": 7, "dispatch_batches": False}, "SIGTERM"),
}


@pytest.mark.parametrize(("config", "signal_name"), ON_TWO_RANKS.values(), ids=ON_TWO_RANKS)
def test_loaders_of_two_ranks(config, signal_name, references, tmp_path):
    """Every way in which Accelerate deals out batches continues on both ranks."""
    settings = PAIR | {"dataloader": config}
    if not config.get("even_batches", True):
        settings["samples"] = 78  # the last batch of one rank is shorter, and both have equally many
    reference = references(settings)
    code = 143 if signal_name == "SIGTERM" else -signal.SIGKILL
    train(tmp_path, {**settings, "signal": signal_name, "at": ["batch", 13]}, expect=code)
    train(tmp_path, settings, expect=0)
    assert_same_training(tmp_path, reference, ranks=2)
