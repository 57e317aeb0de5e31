"""The looks at random streams: each number that is drawn is seen, and none is drawn by looking."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from spot_plugins.fingerprints import internals
from spot_plugins.fingerprints.streams import SLOW_EVERY, Streams
from spot_plugins.state import RngPart, encode

DRAWS = {
    0: [lambda: torch.rand(1), lambda: torch.randperm(5), lambda: torch.manual_seed(8)],
    1: [random.random, lambda: random.gauss(0, 1), lambda: random.seed(8)],
    2: [np.random.rand, lambda: np.random.randint(3), lambda: np.random.seed(8)],
}
EACH = [(number, draw) for number, draws in DRAWS.items() for draw in draws]


@pytest.fixture(autouse=True)
def streams_as_before():
    part = RngPart()
    state = part.state_dict()
    part.load_state_dict(state)
    yield
    part.load_state_dict(state)


@pytest.fixture(params=["fast", "slow"])
def streams(request, monkeypatch):
    if request.param == "slow":  # another interpreter, or another layout in memory
        monkeypatch.setattr(internals, "torch_memory", lambda: None)
        monkeypatch.setattr(internals, "python_stream", lambda: None)
        monkeypatch.setattr(internals, "numpy_memory", lambda generator: None)
    return Streams()


@pytest.mark.parametrize(("number", "draw"), EACH)
def test_a_number_that_is_drawn_changes_its_stream_alone(number, draw, streams):
    before = streams.look(SLOW_EVERY)
    draw()
    after = streams.look(SLOW_EVERY)

    assert [index for index in range(4) if before[index] != after[index]] == [number]


def test_a_look_draws_nothing(streams):
    before = encode(RngPart().state_dict())
    looks = {streams.look(SLOW_EVERY) for _ in range(3)}

    assert len(looks) == 1
    assert repr(encode(RngPart().state_dict())) == repr(before)


def test_the_same_state_has_the_same_hash_in_another_process(streams):
    """The hash of a restored stream is that of the saved one."""
    state = RngPart().state_dict()
    looks = []
    for _ in range(2):
        RngPart().load_state_dict(state)
        random.gauss(0, 1)
        looks.append(streams.look(SLOW_EVERY))
        torch.manual_seed(9)
        torch.rand(700)
        np.random.rand(700)
        [random.random() for _ in range(700)]
    assert looks[0] == looks[1]


def test_the_fast_way_is_taken_here():
    """Else a look at Python's or numpy's stream costs more than all the rest."""
    assert internals.torch_memory() is not None
    assert internals.python_stream() is not None
    assert internals.numpy_memory(np.random.get_bit_generator()) is not None
    assert min(Streams().look(1)[:3]) > 0


def test_the_slow_way_is_taken_in_some_steps(monkeypatch):
    monkeypatch.setattr(internals, "python_stream", lambda: None)
    monkeypatch.setattr(internals, "numpy_memory", lambda generator: None)
    looks = [Streams().look(step)[1:3] for step in range(SLOW_EVERY + 1)]

    assert [step for step, look in enumerate(looks) if min(look) > 0] == [0, SLOW_EVERY]
    assert looks[1] == (0, 0)


def test_a_number_that_gauss_keeps_counts():
    """Both streams have drawn the same numbers, and only one of them has one to return yet."""
    streams = Streams()
    random.gauss(0, 1)
    with_one = streams.look(1)[1]
    random.gauss(0, 1)
    assert streams.look(1)[1] != with_one


def test_another_generator_of_numpy_is_seen():
    """np.random.set_bit_generator puts another one in its place, of any kind."""
    streams = Streams()
    legacy = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        before = streams.look(SLOW_EVERY)[2]
        np.random.rand()
        after = streams.look(SLOW_EVERY)[2]
        assert len({0, before, after}) == 3
        np.random.set_bit_generator(np.random.MT19937(1))
        assert streams.look(1)[2] not in (0, before, after)
    finally:
        np.random.set_bit_generator(legacy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_number_that_a_device_draws_changes_its_stream():
    torch.rand(1, device="cuda")
    streams = Streams()
    before = streams.look(1)
    torch.rand(1, device="cuda")
    after = streams.look(1)
    assert before[3] > 0
    assert [index for index in range(4) if before[index] != after[index]] == [3]
