"""The check of frozen values on an emulated device: one copy that is waited for, whatever the number of tensors."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from emulated import emulated_device
from steps import InlinePusher
from torch import nn
from torch.overrides import TorchFunctionMode

from spot_plugins.events import EventBus
from spot_plugins.push.messages import StoredFrozen
from spot_plugins.ranks import SingleRank
from spot_plugins.save import Saver
from spot_plugins.state import ModelPart
from spot_plugins.state.registry import Registry

NUM_LAYERS = 40


class BlockingCopies(TorchFunctionMode):
    """Counts the calls that copy from a device and wait."""

    num = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.num += func is torch.Tensor.cpu
        return func(*args, **(kwargs or {}))


@contextmanager
def saver_of(model):
    pusher = InlinePusher(None, None)
    registry = Registry()
    registry.add("model", ModelPart(model), replicated=ModelPart.replicated)
    saver = Saver(registry, SingleRank(), pusher, EventBus())
    try:
        yield saver, pusher
    finally:
        saver.close()


@pytest.mark.parametrize("change", [None, 0, NUM_LAYERS - 1])
def test_the_values_are_read_by_one_copy_that_is_waited_for(change):
    """A change of any of them, without a new version, is found. Then the step brings all as its own."""
    base = nn.ModuleList(nn.Linear(64, 64) for _ in range(NUM_LAYERS)).requires_grad_(False)
    with (
        emulated_device() as device,
        saver_of(nn.ModuleDict({"base": base, "head": nn.Linear(4, 4)})) as (saver, pusher),
    ):
        first = saver.stage(1, "explicit", deadline=0.0)
        pusher.ledger.store_frozen(StoredFrozen(first.frozen.number, ()))
        if change is not None:
            base[change].weight.data[3, 5] += 1.0
            base[change].weight.data.mul_(2.0)
        device.num_blocking = 0
        with BlockingCopies() as copies:
            second = saver.stage(2, "explicit", deadline=0.0)
        assert second.frozen.use.name == ("REFERS" if change is None else "NONE")
        assert copies.num == 0
        assert device.num_blocking == 1
