"""A bare loop is told when it saves while gradients wait for an optimizer step."""

import threading
import warnings

import pytest
import torch
from torch import nn

from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession

WAIT = "gradients wait for an optimizer step"


class Loop:
    """Two models that take turns, as in a GAN. The second loss gives gradients to the first model too."""

    def __init__(self):
        self.nets = nn.Linear(2, 2), nn.Linear(2, 1)
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]

    def backward(self):
        self.nets[1](self.nets[0](torch.ones(1, 2))).sum().backward()

    def step(self, *, clears=None):
        for optimizer in self.optimizers:
            if clears is None:
                optimizer.zero_grad()
            self.backward()
            optimizer.step()
        if clears is not None:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=clears)


def overflow(loop):
    loop.backward()
    for net in loop.nets:
        for parameter in net.parameters():
            parameter.grad.fill_(float("inf"))


@pytest.fixture
def session(tmp_path):
    with SpotSession(SpotConfig(url=f"file://{tmp_path}/run", every_steps=100)) as session:
        yield session


def told(session, loop, before, call):
    session.register_model(nn.ModuleList(loop.nets), loop.optimizers)
    session.resume()
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        for step in (1, 2):
            before(loop)
            session.after_step(step)
            if step == 2 and before is within:
                loop.backward()
            call(session, step)
    return [str(each.message) for each in met if WAIT in str(each.message)]


def within(loop):
    loop.step()


def pause(session, step):
    with session.pause(step):
        pass


@pytest.mark.parametrize("call", [pause, SpotSession.save], ids=["pause", "save"])
def test_a_save_within_an_accumulation_is_told_once(session, call):
    """The gradients are lost, and a position that counts their batches leaves these out."""
    lines = told(session, Loop(), within, call)

    assert len(lines) == 1
    assert f"session.{'pause' if call is pause else 'save'}(step)" in lines[0]


@pytest.mark.parametrize(
    "before",
    [
        lambda loop: loop.step(),
        lambda loop: loop.step(clears=True),
        lambda loop: loop.step(clears=False),
        lambda loop: (loop.step(), overflow(loop)),
    ],
    ids=["cleared before", "cleared after", "set to zero", "overflow"],
)
def test_a_pause_after_a_step_is_not_told(session, before):
    """Gradients that were used, cleared, or left by a loss for another optimizer wait for nothing."""
    assert told(session, Loop(), before, pause) == []


def test_gradients_of_another_thread_are_not_told(session):
    """Ranks may be threads of one process. What another one accumulates is saved by it."""
    other = Loop()

    def another_rank(loop):
        loop.step()
        thread = threading.Thread(target=lambda: (other.step(), other.backward()))
        thread.start()
        thread.join()

    assert told(session, Loop(), another_rank, SpotSession.save) == []
