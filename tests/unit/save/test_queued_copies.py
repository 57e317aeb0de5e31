"""Copies that a device has only queued when the training continues, on an emulated device."""

from __future__ import annotations

import gc
import threading
from contextlib import closing

import pytest
import torch
from emulated import emulated_device
from hearing import Heard, until
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, SaveAbandoned, Staged
from spot_plugins.session import SpotSession

pytestmark = pytest.mark.long  # pushes real steps by real processes


@pytest.fixture
def device():
    """Let all copies be queued. They are done once ``may_work`` is set."""
    with emulated_device() as device:
        device.may_work.clear()
        yield device


class Training:
    """A model and an optimizer with momentum, after one step, in a session that has resumed."""

    def __init__(self, url, make=torch.optim.AdamW):
        torch.manual_seed(0)
        self.model = nn.Linear(8, 8)
        self.optimizer = make(self.model.parameters())
        self.step()
        self.heard = Heard()
        self.session = SpotSession(SpotConfig(url=str(url), every_steps=10**6), on_event=self.heard)
        self.session.register_model(self.model, optimizers=[self.optimizer])
        self.resumed_from = self.session.resume()

    def step(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(8)).square().sum().backward()
        self.optimizer.step()

    def close(self):
        self.session.close()


def test_a_change_between_the_queueing_and_the_copy_is_noticed(device, tmp_path):
    """The copies would get the changed weight. So the step is abandoned, by name of the weight."""
    with closing(Training(tmp_path)) as training:
        training.session.save(1)
        copier = training.session._opened.saver._copier
        until(copier._issued.is_set, "the copies are queued")
        with torch.no_grad():
            training.model.weight.clamp_(-1e-3, 1e-3)
        device.may_work.set()

        assert "weight" in training.heard.wait(SaveAbandoned, step=1).reason
        assert training.heard.of(Committed) == []


def test_the_next_step_changes_nothing_before_the_copy(device, tmp_path):
    """An optimizer lets the device finish the copies first. What changes later is no business of the save."""
    with closing(Training(tmp_path)) as training:
        expected = training.model.weight.detach().clone()
        training.session.save(1)
        training.step()
        device.may_work.set()
        training.heard.wait(Committed, step=1)
        assert not torch.equal(training.model.weight, expected)

    with closing(Training(tmp_path)) as training:
        assert training.resumed_from == 1
        assert torch.equal(training.model.weight, expected)


def test_a_fence_can_wait_until_the_device_has_copied(device, tmp_path):
    """As before the capture of a graph. The step is staged when it returns."""
    with closing(Training(tmp_path)) as training:
        training.session.save(1)
        found = []

        def fence():
            training.session.fence(copied=True)
            found.append(len(training.heard.of(Staged)))

        waiting = threading.Thread(target=fence)
        waiting.start()
        queued = training.session._opened.saver._copier._work
        until(lambda: found or queued.qsize(), "the fence has returned, or waits for the copying thread")
        device.may_work.set()
        waiting.join()
        assert found == [1]


class Replacing(torch.optim.SGD):
    """An optimizer that replaces its state, and does not change it in place."""

    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            self.state[weight] = {"sum": self.state[weight].get("sum", 0) + weight.grad.clone()}
        return super().step(closure)


def test_state_that_an_optimizer_replaces_is_let_go_after_the_copy(tmp_path):
    """It would take memory on the device until the next save."""
    with closing(Training(tmp_path, Replacing)) as training:
        old = StorageWeakRef(training.optimizer.state[training.model.weight]["sum"].untyped_storage())
        training.session.save(1)
        training.heard.wait(Committed, step=1)
        training.step()

        def is_gone():
            gc.collect()
            return old.expired()

        until(is_gone, "the old state is let go")
