"""The limit of the training process for a local disk that may never answer."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from sick_disks import SickDisk

from spot_plugins.errors import Preempted
from spot_plugins.store import HangingDiskError, LimitedStore, LocalDisk, LocalStore, local_disk


def test_what_a_read_gets_too_late_changes_nothing(tmp_path):
    """The memory has the bytes of the store by then. A disk that was given up is not asked again."""
    LocalStore(str(tmp_path / "local")).put("steps/a", b"late")
    store = LimitedStore(LocalStore(str(tmp_path / "local")), LocalDisk(str(tmp_path / "local")))
    memory = bytearray(b"good")
    with SickDisk(tmp_path / "local"), pytest.raises(HangingDiskError):
        store.get_into("steps/a", 0, [memoryview(memory)])
    with pytest.raises(HangingDiskError):
        store.get_into("steps/a", 0, [memoryview(memory)])
    assert memory == b"good"


def test_a_slow_read_is_waited_for_as_long_as_others_end(tmp_path, monkeypatch, caplog):
    """The other reads of a disk that has much to do come before it, for longer than the limit."""
    now, reads = [0.0], []
    monkeypatch.setattr(local_disk, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bare = LocalStore(str(tmp_path / "local"))
    bare.put("steps/slow", b"slow")
    bare.put("steps/fast", b"fast")

    def wait(seconds):
        if len(reads) == 4:
            sick.let_go()
        elif len(reads) == int(now[0] / local_disk.HANG_S * 2):  # not within the wait for another read
            now[0] += local_disk.HANG_S / 2
            reads.append(LimitedStore(bare, disk).get("steps/fast"))

    disk = LocalDisk(str(tmp_path / "local"), wait)
    with SickDisk(tmp_path / "local", part="steps/slow", is_given_up=False) as sick:
        assert LimitedStore(bare, disk).get("steps/slow") == b"slow"
    assert reads == [b"fast"] * 4
    assert caplog.records == []


def test_a_notice_ends_the_wait(tmp_path, caplog):
    def wait(seconds):
        raise Preempted(None)

    store = LimitedStore(LocalStore(str(tmp_path)), LocalDisk(str(tmp_path), wait))
    with SickDisk(tmp_path, is_given_up=False), pytest.raises(Preempted):
        store.get("a")
    assert caplog.records == []


def test_errors_and_results_of_a_healthy_disk_are_as_without_a_limit(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    store = LimitedStore(LocalStore(str(tmp_path)), LocalDisk(str(tmp_path)))
    store.put("steps/a", b"0123456789")
    targets = [bytearray(3), bytearray(0), bytearray(20)]
    assert store.get_into("steps/a", 2, [memoryview(each) for each in targets]) == 8
    assert bytes(targets[0] + targets[2][:5]) == b"23456789"
    assert [*store.keys("steps/")] == ["steps/a"]
    with pytest.raises(KeyError):
        store.get("steps/b")
    assert caplog.records == []
