"""Two programs compared: what is kept, changed or refused, each in one line; and that nothing odd ends a training."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from spot_plugins.events import Resumed
from spot_plugins.program.compare import MAX_LINES, compare
from spot_plugins.program.facts import OMIT, describe, describe_loader, describe_process, plain, plain_fields
from spot_plugins.program.program import Program
from spot_plugins.session.banner import show_banner


def optimizer(kind=SGD, **settings):
    return kind([nn.Parameter(torch.zeros(2))], **{"lr": 0.01, **settings})


class OwnAdam(Adam):
    """A class of the program."""


class RenamedAdam(Adam):
    """The same under another name."""


def lines(before, now, **more):
    """Return the lines and refusals for one thing that was *before* and is *now*."""
    result = compare({"thing": describe(before), **more}, {"thing": describe(now), **more})
    return result.lines + result.refusals


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, []),
        ({}, {"lr": 0.001}, ["the checkpoint's lr=0.01 is used, not lr=0.001"]),
        ({}, {"lr": torch.tensor(0.01)}, []),
        (
            {"momentum": 0.9},
            {"weight_decay": 0.1},
            [
                "the checkpoint's momentum=0.9 is used, not momentum=0",
                "the checkpoint's weight_decay=0 is used, not weight_decay=0.1",
            ],
        ),
        (
            {"kind": Adam},
            {"kind": Adam, "betas": (0.8, 0.9)},
            ["the checkpoint's betas=(0.9, 0.999) is used, not betas=(0.8, 0.9)"],
        ),
        (
            {"kind": Adam},
            {"kind": SGD},
            [
                "thing is SGD now, and was Adam when it was saved, whose state SGD cannot use. "
                "Use Adam, or start anew at another URL"
            ],
        ),
        (
            {"kind": Adam},
            {"kind": AdamW, "weight_decay": 0.0},
            [
                "thing is AdamW now, and was Adam when it was saved, whose state AdamW cannot use. "
                "Use Adam, or start anew at another URL"
            ],
        ),
        (
            {"kind": OwnAdam},
            {"kind": RenamedAdam},
            ["thing is a RenamedAdam now, and a OwnAdam in the checkpoint. The checkpoint's state is used"],
        ),
    ],
)
def test_optimizers(before, now, expected):
    """Settings are the checkpoint's, each difference has one line; another class is refused."""
    assert lines(optimizer(**before), optimizer(**now)) == expected


def test_a_setting_that_many_groups_share_is_named_once():
    """And a setting of one group names that group."""

    def groups(*rates):
        return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])

    assert lines(groups(0.1, 0.1), groups(0.2, 0.2)) == ["the checkpoint's lr=0.1 is used, not lr=0.2"]
    assert lines(groups(0.1, 0.1), groups(0.1, 0.3)) == ["the checkpoint's lr=0.1 is used, not lr=0.3 (group 1)"]


def test_the_rate_is_the_configured_one():
    """A scheduler that warms up has changed the rate before the first step already."""
    cold, warm = optimizer(), optimizer()
    lr_scheduler.LambdaLR(warm, lambda step: step / 10)

    assert lines(cold, warm) == []


@pytest.mark.parametrize(
    ("make_before", "make_now", "expected"),
    [
        (
            lambda it: lr_scheduler.CosineAnnealingLR(it, 10),
            lambda it: lr_scheduler.CosineAnnealingLR(it, 20),
            ["the checkpoint's T_max=10 is used, not T_max=20"],
        ),
        (
            lambda it: lr_scheduler.ReduceLROnPlateau(it, patience=2),
            lambda it: lr_scheduler.ReduceLROnPlateau(it, patience=3),
            ["the checkpoint's patience=2 is used, not patience=3"],
        ),
        (
            lambda it: lr_scheduler.MultiStepLR(it, [2, 4]),
            lambda it: lr_scheduler.MultiStepLR(it, [2, 5]),
            ["the checkpoint's milestones={'2': 1, '4': 1} is used, not milestones={'2': 1, '5': 1}"],
        ),
        (
            lambda it: lr_scheduler.SequentialLR(
                it, [lr_scheduler.LinearLR(it, total_iters=2), lr_scheduler.StepLR(it, 4)], [2]
            ),
            lambda it: lr_scheduler.SequentialLR(
                it, [lr_scheduler.LinearLR(it, total_iters=3), lr_scheduler.StepLR(it, 4)], [2]
            ),
            ["the checkpoint's total_iters=2 is used, not total_iters=3"],
        ),
        (
            lambda it: lr_scheduler.LambdaLR(it, functools.partial(_linear, num_steps=10)),
            lambda it: lr_scheduler.LambdaLR(it, functools.partial(_linear, num_steps=20)),
            ["num_steps=20 is used from now on, not the checkpoint's 10"],
        ),
        (
            lambda it: lr_scheduler.LambdaLR(it, lambda step: 0.5**step),
            lambda it: lr_scheduler.LambdaLR(it, lambda step: 0.25**step),
            ["the function in lr_lambdas is another one than in the checkpoint, and is used"],
        ),
        (
            lambda it: lr_scheduler.StepLR(it, 3),
            lambda it: lr_scheduler.CosineAnnealingLR(it, 3),
            [
                "thing is CosineAnnealingLR now, and was StepLR when it was saved, whose state "
                "CosineAnnealingLR cannot use. Use StepLR, or start anew at another URL"
            ],
        ),
    ],
)
def test_schedulers(make_before, make_now, expected):
    """Settings are the checkpoint's; functions are not saved, so that the new ones are used."""
    software = describe_process(None)

    assert lines(make_before(optimizer()), make_now(optimizer()), **software) == expected
    assert lines(make_now(optimizer()), make_now(optimizer()), **software) == []


def _linear(step, *, num_steps):
    return 1 - step / num_steps


def scheduler_of(function, *, steps=0):
    """Return a schedule by *function*, after *steps*."""
    made = lr_scheduler.LambdaLR(optimizer(lr=1.0), function)
    for _ in range(steps):
        made.optimizer.step()
        made.step()
    return made


class Total:
    """A program that keeps the number of steps in an attribute, where the function of its schedule reads it."""

    def __init__(self, total):
        self.total = total
        self.by_method = lr_scheduler.LambdaLR(optimizer(), self.rate)
        self.by_closure = lr_scheduler.LambdaLR(optimizer(), lambda step: 1 - step / self.total)

    def rate(self, step):
        return 1 - step / self.total


@pytest.mark.parametrize("name", ["by_method", "by_closure"])
def test_a_number_that_a_function_reads_from_an_object(name):
    before, now = (getattr(Total(total), name) for total in (10, 20))

    assert lines(before, now) == ["self.total=20 is used from now on, not the checkpoint's 10"]
    assert lines(now, now) == []


NUM_STEPS = 10


def test_a_number_that_a_function_reads_from_its_module(monkeypatch):
    before = describe(scheduler_of(lambda step: 1 - step / NUM_STEPS))
    monkeypatch.setitem(globals(), "NUM_STEPS", 20)
    now = describe(scheduler_of(lambda step: 1 - step / NUM_STEPS))

    assert compare({"thing": before}, {"thing": now}).lines == [
        "NUM_STEPS=20 is used from now on, not the checkpoint's 10"
    ]


class Shown:
    """Lines as :class:`.Lines` takes them."""

    def __init__(self):
        self.texts = []

    def say_first(self, text, level=None):
        self.texts.append(text)


def told(before, now, ranks):
    """Return what a program says that has the schedule *now*, after a resume of *before* on other *ranks*."""
    opened = SimpleNamespace(
        job=SimpleNamespace(rank=0, world_size=ranks[1]),
        run=SimpleNamespace(url="file:///run", attempt=2),
        listener=SimpleNamespace(summary=None),
        unsuitable=[],
    )
    saved, program, shown = Program(), Program(), Shown()
    saved.gather({"scheduler": before})
    program.gather({"another": object(), "scheduler": now})
    program.check(saved.facts)
    now.load_state_dict(before.state_dict())
    opened.lines = shown
    resumed = Resumed(step=8, from_attempt=1, from_world_size=ranks[0], num_bytes=0, from_local_bytes=0, load_s=0.2)
    show_banner(opened, program, resumed)
    first, *others = shown.texts
    assert ("saved by 2, so last digits may differ)" in first) is (ranks[0] != ranks[1])
    return others


def test_a_schedule_that_depends_on_the_number_of_ranks():
    """Its numbers are named, and why they are others."""
    half, whole = (functools.partial(_linear, num_steps=number) for number in (50, 100))
    number = "num_steps=100 is used from now on, not the checkpoint's 50"
    advice = (
        "a learning rate schedule has other numbers with 1 instead of 2 ranks, so it does not end where it would have. "
        "Compute its number of steps in the same way on any number of ranks"
    )

    assert told(scheduler_of(half), scheduler_of(whole), (2, 1)) == [number, advice]
    assert told(scheduler_of(half), scheduler_of(whole), (2, 2)) == [number]
    assert told(scheduler_of(half, steps=10), scheduler_of(half), (2, 1)) == []


def test_a_schedule_whose_function_reads_its_number_of_steps_somewhere():
    """No fact shows it, but the rate where the run has come to. One that raises there is left alone."""

    def hidden(holder):
        return lambda step: 1 - step / holder[0][0]

    before = scheduler_of(hidden([[50]]), steps=10)
    rate = (
        "the schedule of this program gives a learning rate of 0.9 where the run has come to, and the run had 0.8. "
        "Compute its number of steps in the same way on any number of ranks, and with the same settings as before"
    )
    holder = [[100], object()]

    assert rate in told(before, scheduler_of(hidden(holder)), (2, 2))
    assert told(before, scheduler_of(hidden([[50], object()])), (2, 2)) == []
    holder = [[100], object()]
    now = scheduler_of(hidden(holder))
    holder[0][0] = 0
    assert told(before, now, (2, 2)) == []


def test_a_look_at_a_schedule_changes_nothing():
    """A function may draw random numbers, and an object that is called may count its calls."""

    class Counts:
        def __init__(self):
            self.calls = 0

        def __call__(self, step):
            self.calls += 1
            return 1.0

    def draws(step):
        return 1 + 0 * random.random() * torch.rand(()).item()

    before, now = scheduler_of(draws, steps=10), scheduler_of(draws)
    streams = random.getstate(), torch.get_rng_state()
    assert told(before, now, (2, 2)) == []
    assert random.getstate() == streams[0]
    assert torch.equal(torch.get_rng_state(), streams[1])

    before, now = scheduler_of(Counts(), steps=10), scheduler_of(Counts())
    told(before, now, (2, 2))
    assert now.lr_lambdas[0].calls == before.lr_lambdas[0].calls == 11


def test_models():
    """A layer of another kind that has no weights would change the training in silence."""
    before, now = (nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)) for p in (0.1, 0.5))

    assert lines(before, now, **describe_process(None)) == [
        "the model has 1 x Dropout(p=0.5, inplace=False) now, and 1 x Dropout(p=0.1, inplace=False) in the checkpoint"
    ]


def test_loaders():
    """The batch size is the new one; more data is another order."""
    before, now = (
        describe_loader(DataLoader(TensorDataset(torch.zeros(number)), batch_size=size))
        for number, size in ((8, 2), (10, 4))
    )

    assert sorted(compare({"loader-0": before}, {"loader-0": now}).lines) == [
        "batch_size=4 is used from now on, not the checkpoint's 2",
        "the training data has 10 samples now, and 8 in the checkpoint: "
        "the order of the samples is another from now on",
    ]


def test_software_seed_and_hyperparameters():
    """One line each; a hyperparameter that is a setting of the optimizer too is named once."""

    def program(torch_version, seed, rate):
        return {
            "software": {"is": "software", "torch": torch_version},
            "seed": {"is": "seed", "seed": seed},
            "hparams": {"is": "hparams", "lr": rate, "width": 4 if rate == 0.1 else 8},
            "optimizer-0": describe(optimizer(lr=rate)),
        }

    found = compare(program("2.12", "1", 0.1), program("2.13", "2", 0.2)).lines

    assert found[0] == "torch 2.13 now, and torch 2.12 in the checkpoint: numbers may differ in their last digits"
    assert found[1].startswith("the seed is 2 now, and 1 in the checkpoint") or found[2].startswith("the seed is 2 now")
    assert [line for line in found if "lr" in line] == ["the checkpoint's lr=0.1 is used, not lr=0.2"]
    assert "hparams: width=8 now, and width=4 in the checkpoint" in found


def test_a_kept_value_stays_known():
    """The value that is used is saved again, so that the next attempt names the value that is really used."""
    first, second, third = Program(), Program(), Program()
    first.gather({"optimizer-0": optimizer(lr=0.1)})
    second.gather({"optimizer-0": optimizer(lr=0.2)})
    second.check(first.facts)
    third.gather({"optimizer-0": optimizer(lr=0.2)})

    assert compare(second.facts, third.facts).lines == ["the checkpoint's lr=0.1 is used, not lr=0.2"]
    assert third.check(second.facts) is None
    assert third.facts["optimizer-0"]["groups"][0]["lr"] == 0.1


class Odd:
    """Raises whatever it is asked."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __len__(self):
        raise RuntimeError("no length")


@pytest.mark.parametrize(
    "make",
    [
        Odd,
        object,
        lambda: lambda: 1,
        lambda: torch.zeros(3),
        lambda: "x" * 1000,
        lambda: [[[[[1]]]]],
        lambda: {"a": Odd()},
        lambda: {1, "a"},
        lambda: float("nan"),
    ],
)
def test_a_value_that_cannot_be_described_is_left_out(make):
    """No value of the program ends a training."""
    odd = make()
    assert plain_fields({"odd": odd, "good": 1})["good"] == 1
    assert plain(Odd()) is OMIT
    describe(odd)
    describe_loader(odd)
    Program().add_loaders([odd, None])


@pytest.mark.parametrize(
    "saved",
    [
        None,
        7,
        [],
        {"thing": 3},
        {"thing": {}},
        {"thing": {"is": "optimizer"}},
        {"thing": {"is": "optimizer", "class": "SGD", "base": "SGD", "groups": 5}},
        {"thing": {"is": "optimizer", "class": "SGD", "base": "SGD", "groups": [None, 4]}},
        {"thing": {"is": "optimizer", "class": ["a"], "groups": [{}]}, "software": "x"},
    ],
)
def test_odd_facts_of_a_checkpoint_are_no_difference_to_fail_on(saved):
    """The checkpoint may come from another version, or from nobody we know."""
    result = compare(saved, {"thing": describe(optimizer())})

    assert result.lines == []
    assert all("SGD" in each for each in result.refusals)


def test_nothing_in_a_checkpoint_controls_the_terminal():
    """Escapes are printed as text, and long words are cut."""
    saved = {"thing": {"is": "optimizer", "class": "\x1b[2J" + "x" * 500, "base": None, "groups": []}}

    (refusal,) = compare(saved, {"thing": describe(optimizer())}).refusals
    assert refusal.isprintable()
    assert len(refusal) < 600


def test_many_differences_are_counted():
    """A wall of lines says less than its number."""
    before = {"settings": {"is": "settings", **{f"s{number}": 0 for number in range(30)}}}
    now = {"settings": {"is": "settings", **{f"s{number}": 1 for number in range(30)}}}

    found = compare(before, now).lines

    assert len(found) == MAX_LINES + 1
    assert found[-1] == f"{30 - MAX_LINES} more settings differ from the checkpoint's"
