"""The last seconds of a machine whose device does the steps later than the host has queued them."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from emulated import EmulatedDevice
from steps import Holder, state_of

from spot_plugins.agreement import Notice
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, EventBus, Staged
from spot_plugins.leave import measurements as module
from spot_plugins.leave.measurements import Measurements
from spot_plugins.notices import Announcement
from spot_plugins.ranks import SingleRank
from spot_plugins.save import devices
from spot_plugins.session import SpotSession

MB = 1_000_000
STEP_S = 1.0
NEEDED_S = 3.3  # of the save below, with its margin


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Busy(EmulatedDevice):
    """A device with work for some seconds, by a clock of its own. It is its own current stream."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.done_at = 0.0
        self.num_events = 0

    def current_stream(self, device):
        return self

    def queue(self, seconds):
        self.done_at = max(self.done_at, self.clock.now) + seconds

    def record_event(self):
        self.num_events += 1
        return Moment(self.clock, self.done_at)


class Moment:
    def __init__(self, clock, at):
        self.clock = clock
        self.at = at

    def synchronize(self):
        self.clock.now = max(self.clock.now, self.at)


@pytest.fixture
def device(monkeypatch):
    """A device, with a clock by which the measurements count."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setitem(devices.DEVICES, "cuda", Busy(clock))
    return devices.DEVICES["cuda"]


def trained(device, *, behind_s=0.0):
    """Return the measurements of some steps, each of which takes the host a second. The save takes three."""
    known = Measurements(False, EventBus())
    known.on_saved(1)
    known.on_event(Staged(step=1, trigger="steps", num_bytes=MB, stall_s=0.0, copy_s=1.0))
    known.on_event(Committed(step=1, num_bytes=MB, push_s=2.0, put_bytes_per_s=MB / 2))
    for _ in range(4):
        device.clock.now += STEP_S
        known.on_step()
    device.queue(behind_s)
    return known


def ahead(device, left_s):
    return Notice("cloud", device.clock.now + left_s, at_once=False)


def decide(device, known, left_s):
    """Return the decision after the first step with a notice that leaves *left_s*."""
    notice = ahead(device, left_s)
    device.clock.now += STEP_S
    known.on_step(notice)
    return known.decide(6, notice, 0)


def test_the_work_that_is_queued_is_no_time_to_train(device):
    """Three seconds behind, three steps less fit. None of these seconds makes a step longer."""
    for behind_s in (0.0, 3.0):
        for spare_s, choice in ((0.5, "leave"), (1.0, "leave"), (2.5, "train"), (9.0, "save")):
            known = trained(device, behind_s=behind_s + STEP_S)
            assert decide(device, known, STEP_S + behind_s + NEEDED_S + spare_s) == choice
            assert known.figures()["step_s"] == STEP_S


def test_a_step_that_the_host_only_queues_takes_as_long_as_on_the_device(device):
    """The host is one step ahead of the device, and no more."""
    known = trained(device)
    notice = ahead(device, 100.0)
    for _ in range(5):
        device.queue(2 * STEP_S)
        known.on_step(notice)
        assert device.done_at - device.clock.now <= 2 * STEP_S
    assert known.figures()["step_s"] == 2 * STEP_S


def test_a_step_without_a_notice_that_leaves_time_asks_no_device(device, monkeypatch, tmp_path):
    """A session passes its notice on."""
    monkeypatch.setattr(module, "time", time)
    config = SpotConfig(url=str(tmp_path), every_steps=1000)
    with closing(SpotSession(config, ranks=SingleRank())) as session:
        session.register("part", Holder(state_of(1)))
        session.resume()
        session.after_step(1)
        assert device.num_events == 0
        session._opened.listener._on_announcement(Announcement("cloud", time.monotonic() + 600))
        session.after_step(2)
        assert device.num_events == 1


def test_a_notice_that_leaves_no_time_waits_for_no_device(device):
    known = trained(device, behind_s=3.0)
    before = device.clock.now
    known.on_step(Notice("SIGTERM", device.clock.now + 30.0))
    assert device.clock.now == before
