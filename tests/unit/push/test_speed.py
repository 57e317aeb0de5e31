"""The speed of pushes: what a planner with a deadline is told."""

from __future__ import annotations

import time

import pytest
import torch
from hearing import Heard
from steps import save

from spot_plugins.config import SpotConfig
from spot_plugins.errors import StoreError
from spot_plugins.events import Committed, PushFailing, WrittenLocally
from spot_plugins.push import step_push
from spot_plugins.push.speed import HALF_LIFE_S, Speed
from spot_plugins.session import SpotSession
from spot_plugins.store import MemoryStore


def test_nothing_is_known_before_the_first_transfer():
    """
    No speed is no number: neither zero, which would say never, nor a guess.
    """
    speed = Speed()
    assert speed.bytes_per_s is None
    speed.record(0, 1.0)
    speed.record(5, 0.0)
    assert speed.bytes_per_s is None


def test_the_speed_of_steady_transfers_is_theirs():
    """
    However long each of them takes, and in whatever pieces it is measured.
    """
    speed = Speed()
    for seconds in (0.001, 5.0, 600.0, 0.5):
        speed.record(round(1e8 * seconds), seconds)

        assert speed.bytes_per_s == pytest.approx(1e8)


def test_old_transfers_fade():
    """
    One half-life of transfers at another speed moves the estimate most of the way, a short one hardly at all.
    """
    speed = Speed()
    speed.record(100 * 60, 60.0)
    speed.record(1, 0.01)
    assert speed.bytes_per_s == pytest.approx(100, rel=0.01)
    for _ in range(10):
        speed.record(10 * 3, HALF_LIFE_S / 10)

    old = 60 / 2
    new = sum(3 * 0.5 ** (number / 10) for number in range(10))
    assert speed.bytes_per_s == pytest.approx((100 * old + 10 * new) / (old + new), rel=0.01)
    speed.record(10 * 600, 600.0)
    assert speed.bytes_per_s == pytest.approx(10, rel=0.01)


class Paced(MemoryStore):
    """Takes a set time for each put, and fails the first ones after a longer one."""

    def __init__(self, failures=0):
        super().__init__()
        self.failures = failures

    def put(self, key, data):
        if self.failures:
            self.failures -= 1
            time.sleep(0.5)
            raise StoreError("put", key, "on purpose", retryable=True)
        time.sleep(0.05)
        super().put(key, data)


@pytest.mark.parametrize("failures", [0, 1])
def test_puts_are_timed_and_failed_ones_are_not(failures, monkeypatch):
    """
    The event of a step says how fast its blobs went out; a failed try and the pause behind it do not count.
    """
    monkeypatch.setattr(step_push, "FIRST_PAUSE_S", 0.5)
    before = time.monotonic()
    told = save(1, Paced(failures), local=Paced())
    took_s = time.monotonic() - before

    (committed,) = [event for event in told if isinstance(event, Committed)]
    (written,) = [event for event in told if isinstance(event, WrittenLocally)]
    assert len([event for event in told if isinstance(event, PushFailing)]) == failures
    put_s = committed.num_bytes / committed.put_bytes_per_s
    assert 0.05 < put_s < took_s - failures * 0.75  # half a second of the try, and half of the pause at least
    assert 0 < written.write_bytes_per_s < written.num_bytes / 0.05


def test_the_trainer_is_told_the_speeds(tmp_path):
    """
    A commit says how fast the blobs went to the store. Without a local disk nothing is said of one.
    """
    heard = Heard()
    session = SpotSession(SpotConfig(url=f"file://{tmp_path}/run", every_steps=1), on_event=[heard])
    session.register("model", torch.nn.Linear(2, 2))
    session.resume()
    session.save(1)
    committed = heard.wait(Committed, step=1)

    assert committed.put_bytes_per_s > 0
    assert heard.of(WrittenLocally) == []
    session.close()
