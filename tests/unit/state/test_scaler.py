"""The state of a gradient scaler, which is taken without a wait for the device."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spot_plugins.lightning.kept import KeptPart
from spot_plugins.lightning.precision import own_state, precision_part
from spot_plugins.state import decode
from spot_plugins.state.registry import Registry


class Reads(TorchDispatchMode):
    """Counts the values of tensors that become numbers meanwhile."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def scaler_after(num_steps, *, inf_at=None):
    """Return a scaler that has changed its scale."""
    scaler, weight = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight])
    for number in range(num_steps):
        scaler.scale((weight * (torch.inf if number == inf_at else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return scaler


def registry_of(scaler, host):
    """Return the parts of a training of *host*. Accelerate registers its scaler as a bare loop does."""
    registry = Registry()
    registry.add("scaler", scaler if host == "bare" else KeptPart(precision_part(plugin_of(scaler))))
    return registry


def plugin_of(scaler):
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("host", ["bare", "Lightning"])
def test_a_save_reads_no_number_of_a_scaler(host):
    """The state comes back as it was, also from a checkpoint with numbers."""
    scaler = scaler_after(4, inf_at=1)
    registry = registry_of(scaler, host)
    with Reads() as reads:
        document, live = registry.capture(1)
    assert reads.number == 0

    state = decode(document, {name: each.tensor.clone() for name, each in live.items()})["scaler"]
    expected = scaler.state_dict()
    assert expected["scale"] != 8.0
    assert expected["_growth_tracker"] > 0
    assert own_state(plugin_of(scaler), state) == expected
    for saved in (state, expected):
        for resumed in (scaler_after(0), scaler_after(1)):
            [(_, part)] = registry_of(resumed, host).items()
            part.load_state_dict(saved)
            assert resumed.state_dict() == expected


@pytest.mark.parametrize("host", ["bare", "Lightning"])
def test_a_scaler_that_was_not_used_or_is_off_keeps_its_own_state(host):
    for scaler in (scaler_after(0), torch.amp.GradScaler("cpu", enabled=False)):
        [(_, part)] = registry_of(scaler, host).items()
        assert part.state_dict() == scaler.state_dict()


def test_a_plugin_with_more_state_than_its_scaler_is_asked_for_it():
    class More(MixedPrecision):
        def state_dict(self):
            return {**super().state_dict(), "more": torch.ones(())}

    plugin = More("16-mixed", "cpu", scaler_after(1))
    assert precision_part(plugin).state_dict() == plugin.state_dict()
    assert own_state(plugin, plugin.state_dict()) == plugin.state_dict()
