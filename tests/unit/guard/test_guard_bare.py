"""The guard tells a bare loop about things that it changes and does not save. Each program was silent before."""

from __future__ import annotations

import copy
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from spot_plugins.config import SpotConfig
from spot_plugins.data import LoaderPosition, elastic_loader
from spot_plugins.errors import ConfigError
from spot_plugins.session import SpotSession
from spot_plugins.state import RngPart

NUM_STEPS = 12


class Training:
    """A model with its optimizer, saved, and whatever a test adds."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(2, 4)).square().mean().backward()
        self.optimizer.step()


@pytest.fixture
def session(tmp_path):
    with SpotSession(SpotConfig(url=f"file://{tmp_path}/run", every_steps=10**6)) as session:
        yield session


def warned(run):
    """Return the messages of all warnings while *run* runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # a fork on 3.12
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)  # torch 2.6 of its own
        run()
    return [str(each.message) for each in caught]


def train(session, training, each_step=lambda: None, num_steps=NUM_STEPS):
    """Train and return what was told."""

    def run():
        session.resume()
        for step in range(1, num_steps + 1):
            training.step()
            each_step()
            session.after_step(step)

    return warned(run)


def test_a_complete_program_is_told_nothing(session):
    training = Training()
    scheduler = torch.optim.lr_scheduler.StepLR(training.optimizer, 2)
    average = AveragedModel(training.model)
    frozen = copy.deepcopy(training.model).eval()
    session.register_model(training.model, [training.optimizer], [scheduler])
    session.register("average", average)
    session.register("rng", RngPart())

    def each_step():
        frozen(torch.rand(2, 4))
        scheduler.step()
        average.update_parameters(training.model)

    assert train(session, training, each_step) == []


@pytest.mark.parametrize(
    "kind",
    [
        nn.Dropout,
        nn.parallel.DistributedDataParallel,
        torch.jit.RecursiveScriptModule,
        torch.amp.GradScaler,
        torch.optim.lr_scheduler.OneCycleLR,
        DataLoader,
        LoaderPosition,
    ],
)
def test_an_object_whose_constructor_has_failed_is_passed_over(session, kind):
    """It is alive as long as somebody holds the exception, and has none of its attributes."""
    unfinished = kind.__new__(kind)
    training = Training()
    session.register_model(training.model, [training.optimizer])

    assert train(session, training) == []
    assert type(unfinished) is kind


def test_an_optimizer_is_named(session):
    training = Training()
    session.register_model(training.model)
    [told] = train(session, training)
    assert "optimizer SGD `training.optimizer`" in told
    assert "session.register_model()" in told


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_scheduler_is_named(session, num_steps):
    """Also one that steps less often than the optimizer."""
    training = Training()
    scheduler = torch.optim.lr_scheduler.StepLR(training.optimizer, 2)
    session.register_model(training.model, [training.optimizer])
    steps = iter(range(NUM_STEPS))
    [told] = train(session, training, lambda: next(steps) % num_steps or scheduler.step())
    assert "learning rate scheduler StepLR `scheduler`" in told


def test_a_scheduler_of_other_people_is_named(session):
    training = Training()

    class Warmup:
        def __init__(self, optimizer):
            self.optimizer, self.count = optimizer, 0

        def step(self):
            self.count += 1
            self.optimizer.param_groups[0]["lr"] = 0.1 / self.count

        def state_dict(self):
            return {"count": self.count}

    warmup = Warmup(training.optimizer)
    session.register_model(training.model, [training.optimizer])
    [told] = train(session, training, warmup.step)
    assert "learning rate scheduler Warmup `warmup`" in told


def test_the_schedulers_in_a_saved_one_are_saved(session):
    training = Training()
    parts = [torch.optim.lr_scheduler.ConstantLR(training.optimizer, total_iters=2) for _ in range(2)]
    scheduler = torch.optim.lr_scheduler.SequentialLR(training.optimizer, parts, [3])
    session.register_model(training.model, [training.optimizer], [scheduler])
    assert train(session, training, scheduler.step) == []


def _momentum(average, model):
    with torch.no_grad():
        for mine, other in zip(average.parameters(), model.parameters(), strict=True):
            mine.mul_(0.9).add_(other, alpha=0.1)


def _through_data(average, model):
    for mine, other in zip(average.parameters(), model.parameters(), strict=True):
        mine.data = mine.data * 0.9 + other.data * 0.1


@pytest.mark.parametrize(
    "update", [_momentum, _through_data, lambda average, model: average.load_state_dict(model.state_dict())]
)
def test_an_averaged_copy_is_named(session, update):
    training = Training()
    average = copy.deepcopy(training.model)
    session.register_model(training.model, [training.optimizer])
    [told] = train(session, training, lambda: update(average, training.model))
    assert "module Sequential `average`" in told
    assert "optimizer" not in told


def test_an_averaged_copy_in_a_part_that_clones_is_saved(session):
    training = Training()
    average = copy.deepcopy(training.model)
    session.register_model(training.model, [training.optimizer])
    clone = lambda: {name: value.clone() for name, value in average.state_dict().items()}  # noqa: E731
    session.register("average", SimpleNamespace(state_dict=clone, load_state_dict=average.load_state_dict))
    assert train(session, training, lambda: _momentum(average, training.model)) == []


class Shadow:
    """Averaged weights as people write them without a module."""

    def __init__(self, model, make):
        self.model = model
        self.weights = make([(name, value.detach().clone()) for name, value in model.named_parameters()])

    def update(self):
        for name, value in self.model.named_parameters():
            self.weights[name] = 0.9 * self.weights[name] + 0.1 * value.detach()

    def state_dict(self):
        return {name: value.clone() for name, value in self.weights.items()}

    def load_state_dict(self, state):
        self.weights = dict(state)


@pytest.mark.parametrize("is_saved", [True, False])
def test_averaged_tensors_are_named(session, is_saved):
    training = Training()
    shadow = Shadow(training.model, dict)
    session.register_model(training.model, [training.optimizer])
    if is_saved:
        session.register("shadow", shadow)
    told = train(session, training, shadow.update)
    assert ["tensors dict `shadow.weights`" in each for each in told] == [True] * (not is_saved)


def test_a_second_model_is_named_with_its_optimizer(session):
    training, other = Training(), Training()
    session.register_model(training.model, [training.optimizer])
    [told] = train(session, training, other.step)
    assert "optimizer SGD `other.optimizer`" in told
    assert "module Sequential `other.model`" in told


def test_parameters_outside_of_modules_are_named(session):
    training = Training()
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    session.register_model(training.model, [training.optimizer, optimizer])

    def each_step():
        weight.grad = torch.ones(3)
        optimizer.step()

    [told] = train(session, training, each_step)
    assert "1 parameters that SGD `optimizer` trains" in told


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_that_is_in_no_state_is_named(session, persistent):
    """Its module is saved without it. A buffer that is computed anew in each process does not change."""

    class Centered(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.register_buffer("mean", torch.zeros(4), persistent=persistent)
            self.register_buffer("mask", torch.ones(4), persistent=False)

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return super().forward((x - self.mean) * self.mask)

    training = Training()
    training.model = Centered()
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
    session.register_model(training.model, [training.optimizer])

    told = train(session, training)

    named = "tensors buffer 'mean' (persistent=False) of Centered `training.model`."
    assert [named in text for text in told] == ([] if persistent else [True])


def test_statistics_of_a_module_are_named(session):
    training = Training()
    norm = nn.BatchNorm1d(4, affine=False)
    session.register_model(training.model, [training.optimizer])
    session.register("rng", RngPart())
    [told] = train(session, training, lambda: norm(torch.rand(3, 4)))
    assert "module BatchNorm1d `norm`" in told


def _torch_generator():
    generator = torch.Generator().manual_seed(1)
    return generator, lambda: torch.rand(3, generator=generator)


def _numpy_generator():
    generator = np.random.default_rng(1)
    return generator, generator.random


def _numpy_state():
    generator = np.random.RandomState(1)
    return generator, generator.random_sample


def _python_generator():
    generator = random.Random(1)
    return generator, generator.random


SAVING = {
    _torch_generator: lambda each: SimpleNamespace(state_dict=each.get_state, load_state_dict=each.set_state),
    _numpy_generator: lambda each: SimpleNamespace(state_dict=lambda: each.bit_generator.state, load_state_dict=print),
    _numpy_state: lambda each: SimpleNamespace(state_dict=lambda: each.get_state(legacy=False), load_state_dict=print),
    _python_generator: lambda each: SimpleNamespace(state_dict=each.getstate, load_state_dict=each.setstate),
}


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize("make", SAVING)
def test_generators_are_named(session, make, is_saved):
    training = Training()
    generator, draw = make()
    unused = make()
    session.register_model(training.model, [training.optimizer])
    if is_saved:
        session.register("generator", SAVING[make](generator))
    told = train(session, training, draw)
    assert [f"random generator {type(generator).__name__} `generator`." in each for each in told] == [True] * (
        not is_saved
    )
    del unused


def test_a_generator_that_is_seeded_for_each_step_has_no_state(session):
    training = Training()
    generator, steps = torch.Generator(), iter(range(NUM_STEPS))
    session.register_model(training.model, [training.optimizer])
    assert train(session, training, lambda: torch.rand(3, generator=generator.manual_seed(next(steps)))) == []


@pytest.mark.parametrize(
    ("draw", "name"),
    [(lambda: torch.rand(3), "torch's"), (np.random.random, "numpy's"), (random.random, "Python's")],
)
@pytest.mark.parametrize("is_saved", [True, False])
def test_the_global_streams_are_named(session, draw, name, is_saved):
    training = Training()
    session.register_model(training.model, [training.optimizer])
    if is_saved:
        session.register("rng", RngPart())
    told = train(session, training, draw)
    assert [f"random generator {name} global stream" in each for each in told] == [True] * (not is_saved)


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_scaler_is_named(session, is_saved):
    training = Training()
    scaler = torch.amp.GradScaler("cpu")

    def step():
        training.optimizer.zero_grad()
        scaler.scale(training.model(torch.ones(2, 4)).square().mean() * 1e-3).backward()
        scaler.step(training.optimizer)
        scaler.update()

    session.register_model(training.model, [training.optimizer])
    if is_saved:
        session.register("scaler", scaler)
    told = train(session, SimpleNamespace(step=step))
    assert ["gradient scaler GradScaler `scaler`" in each for each in told] == [True] * (not is_saved)


def _loop(session, training, loader, position=None):
    def run():
        session.resume()
        step = 0
        for epoch in range(2):
            if position is not None:
                position.begin_epoch(epoch)
            for _ in loader:
                training.step()
                step += 1
                session.after_step(step)

    return warned(run)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_without_a_position_is_named(session, num_workers):
    training = Training()
    loader = DataLoader(TensorDataset(torch.ones(20, 4)), batch_size=2, num_workers=num_workers)
    session.register_model(training.model, [training.optimizer])
    session.register("rng", RngPart())
    [told] = _loop(session, training, loader)
    assert "position in the data of DataLoader `loader`" in told
    assert "LoaderPosition" in told


@pytest.mark.parametrize("elastic", [True, False])
@pytest.mark.parametrize("is_registered", [True, False])
def test_a_loader_with_a_registered_position_is_not(session, elastic, is_registered):
    training = Training()
    data = TensorDataset(torch.ones(20, 4))
    loader = elastic_loader(data, batch_size=2, seed=1) if elastic else DataLoader(data, batch_size=2)
    position = LoaderPosition(loader, 1)
    session.register_model(training.model, [training.optimizer])
    session.register("rng", RngPart())
    if is_registered:
        part = SimpleNamespace(state_dict=lambda: position.state_dict(1), load_state_dict=position.load_state_dict)
        session.register("position", part)
    told = _loop(session, training, loader, position)
    assert ["position in the data of DataLoader `loader`" in each for each in told] == [True] * (not is_registered)


class Counted(IterableDataset):
    """A stream that counts its epochs."""

    def __init__(self):
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        yield from torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(self.epochs))


class Shuffled(Counted):
    """Shuffles its list in place, so that each order follows from the one before."""

    def __init__(self):
        self.order = list(range(4))

    def __iter__(self):
        random.shuffle(self.order)
        yield from torch.randn(4, 2, 4)[self.order]


class Cached(Counted):
    """Keeps what it has read, and a length that it learns: nothing that a new process lacks."""

    def __init__(self):
        self.length, self.read, self.epoch = None, [], 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.length = 4
        for number in range(4):
            self.read.append(number)
            yield torch.zeros(2, 4)


class CountingSampler(Sampler):
    """Nothing but a class with an __iter__, which counts by itself."""

    def __init__(self):
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        return iter(torch.randperm(4, generator=torch.Generator().manual_seed(self.epochs)).tolist())

    def __len__(self):
        return 4


NUMBERED = {
    "counter": (lambda: DataLoader(Counted(), batch_size=None), "Counted `loader.dataset`"),
    "order": (lambda: DataLoader(Shuffled(), batch_size=None), "Shuffled `loader.dataset`"),
    "sampler": (
        lambda: DataLoader(torch.zeros(4, 2, 4), batch_size=None, sampler=CountingSampler()),
        "CountingSampler",
    ),
    "stateful": (lambda: StatefulDataLoader(Counted(), batch_size=None), "Counted `loader.dataset`"),
    "cache": (lambda: DataLoader(Cached(), batch_size=None), None),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_what_changes_in_a_data_set_from_epoch_to_epoch_is_named(session, name):
    """A resumed epoch would begin with that of a new process, whichever way the position is found."""
    make, named = NUMBERED[name]
    training, loader = Training(), make()
    position, place = LoaderPosition(loader, 1), SimpleNamespace(batches=0)
    part = SimpleNamespace(
        state_dict=lambda: position.state_dict(place.batches), load_state_dict=position.load_state_dict
    )
    session.register_model(training.model, [training.optimizer])
    session.register("position", part)
    session.register("rng", RngPart())

    def run():
        session.resume()
        step = 0
        for epoch in range(5):
            position.begin_epoch(epoch)
            if hasattr(loader.dataset, "set_epoch"):
                loader.dataset.set_epoch(epoch)
            for place.batches, _ in enumerate(loader, start=1):
                training.step()
                session.after_step(step := step + 1)
            place.batches = 0

    told = [text for text in warned(run) if "vital" not in text]
    expected = f"not saved, although this training changes it: what changes in {named}"
    assert [expected in text for text in told] == ([] if named is None else [True]), told


def test_a_validation_in_a_pause_is_not_named(session):
    training = Training()
    loader = DataLoader(TensorDataset(torch.ones(20, 4)), batch_size=2, num_workers=1, persistent_workers=True)
    session.register_model(training.model, [training.optimizer])
    session.register("rng", RngPart())
    step = 0

    def validate():
        nonlocal step
        if step:
            with session.pause(step):
                for _ in zip(loader, range(step), strict=False):
                    pass
        step += 1

    assert train(session, training, validate) == []


def test_no_parameter_saved_is_an_error(session):
    training = Training()
    session.register_model(copy.deepcopy(training.model), [training.optimizer])
    with pytest.raises(ConfigError, match="no parameter that the optimizers train is saved"):
        train(session, training)


def test_an_inner_optimizer_of_one_step_is_not_named(session):
    """As in MAML and attacks on inputs: it lives within a step."""
    training = Training()
    session.register_model(training.model, [training.optimizer])

    def inner():
        fast = copy.deepcopy(training.model)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
        for _ in range(3):
            fast(torch.ones(1, 4)).sum().backward()
            optimizer.step()

    assert train(session, training, inner) == []


def test_a_second_optimizer_that_begins_late_is_named(session):
    """Also if nothing is saved for a while: the next save shows that the optimizer is not in it."""
    training, other = Training(), Training()
    session.register_model(training.model, [training.optimizer])
    steps = iter(range(1, 41))

    def each_step():
        step = next(steps)
        if step > 15:
            other.step()
        if step == 25:
            session.save(25)

    told = train(session, training, each_step, num_steps=40)
    assert ["optimizer SGD `other.optimizer`" in each for each in told] == [False, True]
    assert "module Sequential `other.model`" in told[0]


def test_an_averaged_dict_that_is_made_anew_is_named(session):
    training = Training()
    holder = SimpleNamespace(ema={name: value.clone() for name, value in training.model.state_dict().items()})
    session.register_model(training.model, [training.optimizer])

    def each_step():
        state = training.model.state_dict()
        holder.ema = {name: 0.9 * value + 0.1 * state[name] for name, value in holder.ema.items()}

    [told] = train(session, training, each_step)
    assert "tensors dict `holder.ema`" in told


def test_lists_that_are_made_for_each_step_are_not_named(session):
    """Old weights, gradients and batches that a step puts aside."""
    training = Training()
    session.register_model(training.model, [training.optimizer])
    holder = SimpleNamespace()

    def each_step():
        holder.old = [value.detach().clone() for value in training.model.parameters()]
        holder.gradients = [value.grad for value in training.model.parameters()]
        holder.batch = [torch.ones(2, 4) * 3, torch.ones(2)]

    assert train(session, training, each_step) == []
