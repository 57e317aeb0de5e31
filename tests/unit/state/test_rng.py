"""Random streams out of a damaged or hostile checkpoint."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from spot_plugins.data.rng import load_streams_state, streams_state
from spot_plugins.state import RngPart


def _python(state, position):
    version, words, gauss = state["python"]
    return {**state, "python": (version, (*words[:-1], position), gauss)}


def _numpy(state, position):
    inner = {**state["numpy"]["state"], "pos": position}
    return {**state, "numpy": {**state["numpy"], "state": inner}}


def _torch(state, position):
    damaged = state["torch"].clone()
    damaged.view(torch.int64)[1] = position  # words until the next twist
    return {**state, "torch": damaged}


POSITIONS = (-1, 625, 10**6, -(2**31))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("damage", [_python, _numpy, _torch])
def test_a_position_outside_of_a_stream_is_refused(damage, position):
    """Numpy by itself would read foreign memory there. Drawing works after the refusal."""
    part = RngPart()

    with pytest.raises((ValueError, RuntimeError)):
        part.load_state_dict(damage(part.state_dict(), position))

    assert 0 <= random.random() < 1
    assert 0 <= np.random.rand() < 1
    assert 0 <= torch.rand(1).item() < 1


@pytest.mark.parametrize("position", POSITIONS)
def test_the_streams_of_a_loader_are_checked_as_well(position):
    """They lie in the position of a loader, and are restored by other code."""
    state = streams_state()
    state["numpy"]["pos"] = position

    with pytest.raises(ValueError, match="numpy's random state is damaged"):
        load_streams_state(state)

    assert 0 <= np.random.rand() < 1
