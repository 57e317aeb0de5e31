"""
One suite for staging, on each device: the CPU, an emulated device with streams, and a GPU where there is one.

A device with streams is held up while the training continues, so that whoever does not wait for it is found out.
"""

from __future__ import annotations

import contextlib
import math
import queue
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch
from emulated import EmulatedDevice, emulated_device
from torch import nn

from spot_plugins.save import devices
from spot_plugins.save.copier import Copier
from spot_plugins.save.layout import plan_layout
from spot_plugins.save.shared_buffer import SharedBuffer
from spot_plugins.save.snapshot import Snapshot, pieces_in
from spot_plugins.state.live_tensor import Changes, LiveTensor

WITHIN_S = 300.0
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@dataclass
class Place:
    """The device of a test."""

    name: str
    emulated: EmulatedDevice | None

    @property
    def has_streams(self):
        return self.name != "cpu"

    def tensor(self, values):
        return values.to("cuda") if self.name == "cuda" else values

    def is_busy(self):
        """Return whether the device has copied nothing yet, except for its own next work, while it is held up."""
        if self.emulated is not None:
            return self.emulated.num_copies == self.emulated.num_at_once and self.emulated.num_blocking == 0
        return not torch.cuda.current_stream().query()

    @contextlib.contextmanager
    def held_up(self):
        """Let the device do nothing meanwhile, except for its own next work."""
        if self.emulated is not None:
            self.emulated.may_work.clear()
        elif self.name == "cuda":
            torch.cuda._sleep(2_000_000_000)  # about a second
        yield
        if self.emulated is not None:
            self.emulated.may_work.set()


@pytest.fixture(params=["cpu", "emulated", CUDA])
def place(request):
    with emulated_device() if request.param == "emulated" else contextlib.nullcontext() as device:
        yield Place(request.param, device)


@pytest.fixture
def emulated():
    with emulated_device() as device:
        yield Place("emulated", device)


def live_state(place):
    """Tensors of every kind: those that only a step changes, and those that may change at once."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        "matrix": torch.randn(300, 200, generator=draw),
        "turned": torch.randn(200, 300, generator=draw).t(),
        "every other": torch.randn(64, 10, generator=draw)[:, ::2],
        "half": torch.randn(33, generator=draw).bfloat16(),
        "flags": torch.rand(7, generator=draw) > 0.5,
        "count": torch.tensor(3, dtype=torch.int64),
        "nothing": torch.empty(0, 5),
    }
    live = {name: LiveTensor(place.tensor(each), changes=Changes.IN_STEP) for name, each in weights.items()}
    average = torch.randn(50, 20, generator=draw)
    return {
        **live,
        "average": LiveTensor(place.tensor(average)),
        "turned average": LiveTensor(place.tensor(average.t())),
    }


def values_of(live):
    return {name: each.tensor.detach().cpu().clone() for name, each in live.items()}


def staged(buffer, layout, live):
    """Return the tensors that lie in *buffer*."""
    found = {}
    for (start, tensor, _), piece in zip(pieces_in(layout, live), layout.slices, strict=True):
        image = buffer.bytes[start : start + tensor.nbytes].view(tensor.dtype)
        found.setdefault(piece.name, []).append(image)
    return {name: torch.cat(images).view(live[name].tensor.shape).clone() for name, images in found.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def change(live, *changes):
    for each in live.values():
        if each.changes in changes:
            each.tensor.zero_()


@pytest.mark.parametrize(
    ("turned", "num_copies"), [(False, 2), (True, 6)], ids=["contiguous", "through memory of the device"]
)
def test_slices_side_by_side_are_one_copy(turned, num_copies, emulated):
    """
    33 MiB in slices of 8 MiB, and a small tensor behind them. What is not contiguous is copied slice by slice, because
    the device needs memory of its size for that.
    """
    rows = torch.arange(33 * 2**18, dtype=torch.float32).view(33, 2**18)
    live = {
        "large": LiveTensor(rows.t() if turned else rows, changes=Changes.IN_STEP),
        "small": LiveTensor(torch.arange(5, dtype=torch.float32), changes=Changes.IN_STEP),
    }
    layout = plan_layout(live, 0)
    assert len(layout.slices) == 6
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        snapshot = Snapshot(buffer, layout, live)
        snapshot.issue()
        snapshot.wait()
        assert emulated.emulated.num_copies == num_copies
        assert_equal(staged(buffer, layout, live), values_of(live))


def test_a_step_has_the_values_of_its_moment(place):
    """
    What may change at any time is changed at once, and the rest by the next step, while the device has copied nothing
    of it. A second save into the same memory has the values of its own moment.
    """
    live = live_state(place)
    layout = plan_layout(live, 0)
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        for _ in range(2):
            for each in live.values():
                each.tensor.add_(each.tensor.new_ones(()))
            expected = values_of(live)
            with place.held_up():
                snapshot = Snapshot(buffer, layout, live)
                change(live, Changes.ANYTIME)
                snapshot.issue()
                snapshot.hold_back()
                change(live, Changes.IN_STEP)
            snapshot.wait()
            assert snapshot.torn is None
            assert_equal(staged(buffer, layout, live), expected)


@pytest.mark.parametrize("is_queued", [False, True])
def test_a_change_before_the_fence_is_torn(is_queued, place):
    """
    Also after the copy was queued. Only where it is done by then, it is none: the values are those before the change.
    """
    live = {"weight": LiveTensor(place.tensor(torch.ones(1000)), changes=Changes.IN_STEP)}
    layout = plan_layout(live, 0)
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        with place.held_up():
            snapshot = Snapshot(buffer, layout, live)
            if is_queued:
                snapshot.issue()
            live["weight"].tensor.mul_(2)
            if not is_queued:
                snapshot.issue()
            snapshot.hold_back()
        snapshot.wait()
        is_done = is_queued and not place.has_streams
        assert snapshot.torn == (None if is_done else "weight")
        if is_done:
            assert_equal(staged(buffer, layout, live), {"weight": torch.ones(1000)})


def test_nobody_waits_for_a_device_with_streams(place):
    """All copies are queued while the device does nothing. What may change at any time is copied by its next work."""
    if not place.has_streams:
        pytest.skip("the CPU copies itself")
    live = live_state(place)
    layout = plan_layout(live, 0)
    expected = values_of(live)
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        with place.held_up():
            snapshot = Snapshot(buffer, layout, live)
            snapshot.issue()
            assert place.is_busy()
        snapshot.wait()
        assert_equal(staged(buffer, layout, live), expected)


def test_a_driver_that_refuses_to_pin_costs_speed_alone(place, monkeypatch):
    """Nothing stays pinned, the next work of the device raises no error of the driver, and the copies are correct."""
    if not place.has_streams:
        pytest.skip("the CPU copies itself")
    if place.emulated is not None:
        place.emulated.refuses_to_pin = True
    else:
        pin = devices.Cuda.pin
        monkeypatch.setattr(devices.Cuda, "pin", lambda *arguments: pin(*arguments) or pin(*arguments))  # twice
    live = live_state(place)
    layout = plan_layout(live, 0)
    expected = values_of(live)
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        assert buffer.pin_error
        snapshot = Snapshot(buffer, layout, live)
        snapshot.issue()
        snapshot.wait()
        assert_equal(staged(buffer, layout, live), expected)


def test_values_are_fetched_in_a_stream(place):
    if not place.has_streams:
        pytest.skip("the CPU copies itself")
    weight = place.tensor(torch.arange(9.0))
    kind = devices.DEVICES[weight.device.type]
    stream = kind.make_stream(weight.device)
    stream.wait_event(kind.current_stream(weight.device).record_event())
    assert kind.fetch(stream, lambda: weight[::2] * 2).tolist() == [0, 4, 8, 12, 16]


def test_a_device_that_fails_during_the_copy_holds_nobody_up(emulated):
    """The error reaches the owner of the save, and the copying thread continues."""
    live = live_state(emulated)
    layout = plan_layout(live, 0)
    ended = queue.SimpleQueue()
    copier = Copier()
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        with emulated.held_up():
            copier.complete(Snapshot(buffer, layout, live), lambda _, error: ended.put(error))
            emulated.emulated.fails = True
        assert str(ended.get(timeout=WITHIN_S)) == "the device fails"
        assert copier.close(WITHIN_S)


def test_a_copy_never_crosses_from_one_pinned_piece_to_the_next(emulated):
    """The emulated device refuses it, and so may a driver."""
    memory = torch.zeros(64, dtype=torch.uint8)
    device = emulated.emulated
    for start in (0, 32):
        assert device.pin(memory.data_ptr() + start, 32) == 0
    stream = device.make_stream(memory.device)
    device.copy(stream, memory[32:], torch.ones(32, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="more than one pinned piece"):
        device.copy(stream, memory[16:48], torch.ones(32, dtype=torch.uint8))
    assert device.num_copies == 0
    stream.record_event().synchronize()
    assert memory.sum() == 32


def test_a_copy_and_the_capture_of_a_graph(emulated):
    """
    An optimizer's step in the capture cannot wait for a copy that began before it, and says what to do. After a wait
    for the copy there is nothing to wait for.
    """
    weight = nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weight])
    live = {"weight": LiveTensor(weight.detach(), changes=Changes.IN_STEP)}
    layout = plan_layout(live, 0)
    ended = []
    copier = Copier()
    with closing(SharedBuffer(1, layout.num_bytes)) as buffer:
        with emulated.held_up():
            copier.complete(Snapshot(buffer, layout, live), lambda _, error: ended.append(error))
            emulated.emulated.captures = True
            for ask in (copier.fence, optimizer.step):
                with pytest.raises(RuntimeError, match=r"call fence\(copied=True\) before it"):
                    ask()
            emulated.emulated.captures = False
        copier.fence()
        assert copier.wait_done(math.inf)
        assert ended == [None]
        emulated.emulated.captures = True
        optimizer.step()
        copier.close(WITHIN_S)
