"""A look at the random streams sees every draw, and only draws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from spot_plugins.data.rng import are_at, raw_streams

DRAWS = {
    "python": random.random,
    "python, bits": lambda: random.getrandbits(1),
    "numpy": np.random.random,
    "numpy, one word": lambda: np.random.randint(2, dtype="uint32"),
    "numpy, normal": np.random.standard_normal,
    "torch": lambda: torch.rand(()),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_draw_is_seen(draw):
    """The second Gaussian number of numpy, too, which it has drawn together with the first one and kept."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for _ in range(1300):  # more than the words of a Mersenne twister
        before = raw_streams()
        assert are_at(before)
        draw()
        assert not are_at(before)


def test_streams_that_are_put_back_are_where_they_were():
    """As after code that borrows them, with numpy's kept Gaussian number and without it."""
    for _ in range(2):
        np.random.standard_normal()
        before, streams = raw_streams(), np.random.get_state()
        np.random.standard_normal()
        np.random.set_state(streams)
        assert are_at(before)
