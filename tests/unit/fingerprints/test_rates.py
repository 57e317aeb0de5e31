"""The hash of settings of parameter groups: each change of a rate is seen, and no device is waited for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spot_plugins.fingerprints.rates import MOST_GROUPS, Rates


def optimizer_of(make=torch.optim.AdamW, num_groups=1, **settings):
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(num_groups))
    groups = [{"params": [*each.parameters()]} for each in model]
    return make(groups, **{"lr": 0.1, **settings})


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (torch.optim.AdamW, "lr", 0.2),
        (torch.optim.AdamW, "lr", 1),
        (torch.optim.AdamW, "lr", torch.tensor(0.2)),
        (torch.optim.AdamW, "betas", (0.9, 0.9)),
        (torch.optim.AdamW, "weight_decay", 0.0),
        (torch.optim.SGD, "momentum", 0.5),
    ],
)
def test_a_change_is_seen(make, name, value):
    optimizer = optimizer_of(make)
    before = Rates([optimizer]).look(1)
    optimizer.param_groups[0][name] = value

    assert Rates([optimizer]).look(1) not in (0, before)


def test_a_rate_on_a_device_is_not_waited_for():
    """torch raises an error if the value of a tensor on the meta device is read."""
    optimizer = optimizer_of()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    assert Rates([optimizer]).look(1) > 0


@pytest.mark.parametrize("num_groups", [MOST_GROUPS, MOST_GROUPS + 1, 100])
def test_of_many_groups_each_has_its_turn(num_groups):
    """A rate that was changed once and stays is seen within so many steps as there are turns, and always in time."""
    optimizer = optimizer_of(num_groups=num_groups)
    steps = range(num_groups)
    before = [Rates([optimizer]).look(step) for step in steps]
    for group in optimizer.param_groups:
        old, group["lr"] = group["lr"], 0.2
        assert [Rates([optimizer]).look(step) for step in steps] != before
        group["lr"] = old
    assert [Rates([optimizer]).look(step) for step in steps] == before


def test_without_an_optimizer_there_is_nothing_to_see():
    assert Rates([]).look(1) == 0


def test_what_is_no_number_is_no_error():
    optimizer = optimizer_of()
    optimizer.param_groups[0] |= {"lr": None, "betas": "text", "momentum": torch.ones(3)}
    assert Rates([optimizer]).look(1) > 0


class Plain(torch.optim.Optimizer):
    """An optimizer whose groups have none of the settings that are looked at, or one of them."""

    def __init__(self, params, **settings):
        super().__init__(params, settings)

    def step(self):
        pass


def test_an_optimizer_without_a_rate_has_nothing_to_see():
    optimizer = Plain([nn.Parameter(torch.ones(1))])
    assert Rates([optimizer]).look(1) == Rates([optimizer]).look(2)


def test_a_change_of_the_only_setting_is_seen():
    optimizer = Plain([nn.Parameter(torch.ones(1))], lr=0.1)
    before = Rates([optimizer]).look(1)
    optimizer.param_groups[0]["lr"] = 0.2
    assert Rates([optimizer]).look(1) not in (0, before)
