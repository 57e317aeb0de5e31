"""The two things that a plan takes from a store: its measured speed, and the attempts of a run."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone

import pytest

from spot_plugins.economics import link_speed
from spot_plugins.economics.link_speed import MAX_BYTES, measure_disk, measure_store
from spot_plugins.economics.own_rate import run_preemptions
from spot_plugins.errors import StoreError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.store import LocalStore, MemoryStore


class Counting(MemoryStore):
    """A store that counts bytes, and fails as it is told."""

    def __init__(self, fails_after=None, deletes=True):
        super().__init__()
        self.sizes = []
        self._fails_after = fails_after
        self._deletes = deletes

    def put(self, key, data):
        if self._fails_after is not None and len(self.sizes) >= self._fails_after:
            raise StoreError("put", key, "the bucket is full", retryable=False)
        super().put(key, data)
        self.sizes.append(len(data))

    def delete(self, key):
        if not self._deletes:
            raise StoreError("delete", key, "no permission to delete", retryable=False)
        super().delete(key)


def files_in(directory):
    return [name for _, _, names in os.walk(directory) for name in names]


@pytest.fixture
def little(monkeypatch):
    """Measure with little data, because the limits are the same."""
    monkeypatch.setattr(link_speed, "MAX_BYTES", 16 * 1024**2)


def test_a_store_is_measured_and_left_as_it_was(tmp_path, little):
    """
    A real directory: the figure is a speed with its basis, and no file stays.
    """
    found = measure_store(str(tmp_path / "run"))

    assert found.value > 0
    assert found.basis.startswith("measured: ")
    assert files_in(tmp_path) == []


def test_the_disk_is_measured_and_left_as_it_was(tmp_path, little, monkeypatch):
    """
    The temporary directory, with nothing left in it.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert measure_disk().value > 0
    assert list(tmp_path.iterdir()) == []


def test_the_data_is_limited():
    """
    However fast a store is, it gets at most so many bytes.
    """
    store = Counting()
    link_speed._measured(store, "store")

    assert sum(store.sizes[1:]) <= MAX_BYTES
    assert list(store.keys("")) == []


class Slow(Counting):
    """A store each put of which takes three seconds of a clock of its own."""

    def monotonic(self):
        return 3.0 * len(self.sizes)


def test_the_time_is_limited(monkeypatch):
    """
    After the limit no put is begun, and the objects of a slow store are small.
    """
    store = Slow()
    monkeypatch.setattr(link_speed, "time", store)
    link_speed._measured(store, "store")

    assert 4 <= len(store.sizes[1:]) <= 4 + link_speed.NUM_PUTS  # 10 s, and those that had begun
    assert max(store.sizes) == store.sizes[0]


@pytest.mark.parametrize("fails_after", [0, 1, 5])
def test_a_store_that_fails_is_left_as_it_was(fails_after):
    """
    Wherever it fails, what was put is removed.
    """
    store = Counting(fails_after=fails_after)
    with pytest.raises(StoreError, match="the bucket is full"):
        link_speed._measured(store, "store")
    assert list(store.keys("")) == []


def test_objects_that_cannot_be_removed_are_named(little, caplog):
    """
    The measurement counts, and a warning says where something is left.
    """
    assert link_speed._measured(Counting(deletes=False), "store").value > 0
    assert "the measurement could not remove its objects below probe/plan-" in caplog.text


def test_the_attempts_of_a_run_are_counted(tmp_path):
    """
    Three attempts that began up to ten hours ago, all of which have ended.
    """
    store = LocalStore(str(tmp_path))
    for hours in (10, 5, 1):
        started_at = datetime.now(timezone.utc) - timedelta(hours=hours)
        claim_attempt(store, json.dumps({"started_at": started_at.isoformat()}).encode())

    found = run_preemptions(str(tmp_path))

    assert found.num_seen == 3
    assert found.within_s == pytest.approx(36000, rel=0.01)


def test_a_run_without_attempts_has_no_count(tmp_path):
    """
    Then nothing is known.
    """
    assert run_preemptions(str(tmp_path)).within_s == 0
