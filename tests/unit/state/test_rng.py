"""Random streams out of a damaged or hostile checkpoint."""

from __future__ import annotations

import itertools
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


class Devices:
    """The devices of a host, as ``torch.cuda`` shows them. Their generators are those of the CPU."""

    def __init__(self, patch, num_devices, current):
        self.generators = [torch.Generator().manual_seed(number) for number in range(num_devices)]
        self.current = current
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: num_devices)
        patch.setattr(torch.cuda, "current_device", lambda: current)
        patch.setattr(torch.cuda, "get_rng_state_all", lambda: [each.get_state() for each in self.generators])
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: self.generators[device].set_state(state))
        generator = torch.Generator
        patch.setattr(torch, "Generator", lambda device="cpu": generator())

    def draw(self, device):
        """Return the next number of the stream of *device*."""
        return torch.rand((), generator=self.generators[device]).item()


@pytest.mark.parametrize(
    ("there", "here"),
    [((4, 1), (8, 5)), ((8, 5), (4, 1)), ((8, 7), (1, 0)), ((1, 0), (8, 7)), ((2, 1), (2, 1))],
    ids=["two hosts to one", "one host to two", "alone on a host", "from a host alone", "same place"],
)
def test_the_stream_of_the_rank_s_own_device_goes_with_the_rank(monkeypatch, there, here):
    """The number of a device depends on the host. Other devices of the host are those of other ranks."""
    with monkeypatch.context() as patch:
        before = Devices(patch, *there)
        state = RngPart().state_dict()
        expected = before.draw(before.current)
    with monkeypatch.context() as patch:
        after = Devices(patch, *here)

        RngPart().load_state_dict(state)

        assert after.draw(after.current) == expected


def test_all_devices_of_one_process_are_restored(monkeypatch):
    """A model may lie on several devices of one process."""
    with monkeypatch.context() as patch:
        before = Devices(patch, 3, 0)
        state = RngPart().state_dict()
        expected = [before.draw(device) for device in range(3)]
    with monkeypatch.context() as patch:
        after = Devices(patch, 3, 0)
        for device in range(3):
            after.draw(device)

        RngPart().load_state_dict(state)

        assert [after.draw(device) for device in range(3)] == expected


def test_a_state_without_the_number_of_the_device_is_restored_by_number(monkeypatch):
    """An earlier version stored no number."""
    with monkeypatch.context() as patch:
        before = Devices(patch, 2, 1)
        state = RngPart().state_dict()
        del state["device"]
        expected = before.draw(1)
    with monkeypatch.context() as patch:
        after = Devices(patch, 2, 1)
        after.draw(1)

        RngPart().load_state_dict(state)

        assert after.draw(1) == expected


def test_a_new_rank_has_a_stream_on_its_own_device(monkeypatch):
    """The host of a new rank may have more devices than that of rank 0. The stream depends on the rank alone."""
    with monkeypatch.context() as patch:
        Devices(patch, 2, 0)
        state = RngPart().state_dict()

    drawn = {}
    for rank, current in itertools.product((6, 7), (0, 5)):
        with monkeypatch.context() as patch:
            devices = Devices(patch, 8, current)
            RngPart().load_state_dict(RngPart().for_new_rank(state, rank))
            drawn[rank, current] = devices.draw(current)
    assert drawn[6, 0] == drawn[6, 5] != drawn[7, 0] == drawn[7, 5]
