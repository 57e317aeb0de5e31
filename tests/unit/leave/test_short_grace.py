"""The one warning that a notice leaves less time than a save takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hearing import Heard
from steps import Holder

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, EventBus, NoticeSourcesFound, Staged, WrittenLocally
from spot_plugins.leave.measurements import Measurements
from spot_plugins.leave.short_grace import ShortGrace
from spot_plugins.session import SpotSession

MB = 10**6
FOUND = NoticeSourcesFound(providers=("aws",), sources=("aws",), grace_s=30.0, limited_by="aws")
WARNING = (
    "a save takes 40 s by the last 3 of them, and a notice leaves 30 s (aws). A notice will lose the steps since the "
    "last stored one. Save more often, use a faster store, train on more machines, or raise grace_seconds if the "
    "machine gives more time"
)


def saved(step, put_s, disk_s=1.0):
    """The events of a save of 100 MB that takes so long."""
    return [
        Staged(step=step, trigger="steps", num_bytes=100 * MB, stall_s=0.0, copy_s=0.1),
        WrittenLocally(step=step, num_bytes=100 * MB, write_s=disk_s, write_bytes_per_s=100 * MB / disk_s),
        Committed(step=step, num_bytes=100 * MB, push_s=put_s, put_bytes_per_s=100 * MB / put_s),
    ]


@pytest.fixture
def hear(caplog):
    """Let both subscribers hear events, as in a session. Return what is said of saves."""

    def hear(events, disk_survives=False):
        measurements = Measurements(disk_survives, EventBus([]))
        grace = ShortGrace(measurements)
        for event in events:
            measurements.on_event(event)
            grace.on_event(event)
        return [record.getMessage() for record in caplog.records if record.name.endswith("short_grace")]

    return hear


def test_saves_that_take_longer_than_a_notice_leaves_are_told_once(hear):
    """However many follow."""
    assert hear([FOUND, *(event for step in range(1, 9) for event in saved(step, 39.9))]) == [WARNING]


@pytest.mark.parametrize("seconds", [(40, 40), (40, 40, 20, 40, 40), (29, 29, 29, 29)])
def test_fewer_saves_or_faster_ones_are_no_reason(hear, seconds):
    """One of them that is in time begins the count again."""
    assert hear([FOUND, *(event for step, put_s in enumerate(seconds, 1) for event in saved(step, put_s))]) == []


def test_a_local_disk_that_survives_needs_no_store(hear):
    """The next attempt reads the step there. A disk that is as slow as the store is told."""
    events = [FOUND, *(event for step in range(1, 9) for event in saved(step, 40))]
    assert hear(events, disk_survives=True) == []
    slow = [FOUND, *(event for step in range(1, 9) for event in saved(step, 50, disk_s=39.9))]
    assert hear(slow, disk_survives=True) == [WARNING]


def test_no_notice_can_come(hear):
    """Another warning says so. This one would speak of a notice of 0 s."""
    none = NoticeSourcesFound(providers=(), sources=(), grace_s=0.0, limited_by="slurm")
    assert hear([none, *(event for step in range(1, 9) for event in saved(step, 40))]) == []


def test_speeds_that_nobody_measured_are_no_reason(hear):
    """A push that put no bytes measures no speed."""
    events = [
        replace(event, put_bytes_per_s=None) if isinstance(event, Committed) else event
        for step in range(1, 9)
        for event in saved(step, 40)
    ]
    assert hear([FOUND, *events]) == []


def test_a_session_says_it(tmp_path, caplog):
    """By its own speeds, with a grace period in which nothing can be saved."""
    heard = Heard()
    session = SpotSession(SpotConfig(url=str(tmp_path), every_steps=100, grace_seconds=0.000001), on_event=[heard])
    session.register("part", Holder({"w": torch.zeros(1000)}))
    with session:
        session.resume()
        for step in range(1, 5):
            session.save(step)
            heard.wait(Committed, step=step)

    [said] = [record for record in caplog.records if record.name.endswith("short_grace")]
    assert "by the last 3 of them, and a notice leaves 0 s (grace_seconds)" in said.getMessage()
