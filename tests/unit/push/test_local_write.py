"""The local disk and the store, side by side: neither waits for the other."""

from __future__ import annotations

import threading

import pytest
import torch
from hearing import DEADLINE_S, until
from steps import numbers, save

from spot_plugins.errors import StoreError
from spot_plugins.events import Committed, LocalWriteFailed, SaveAbandoned, WrittenLocally
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.push import local_write, step_push
from spot_plugins.push.local_write import Disk
from spot_plugins.store import MemoryStore


class Gated(MemoryStore):
    """Takes no put until it is opened. ``asked`` tells that one waits."""

    def __init__(self):
        super().__init__()
        self.asked, self.opened = threading.Event(), threading.Event()

    def put(self, key, data):
        self.asked.set()
        self.opened.wait()
        super().put(key, data)


class Down(MemoryStore):
    """Refuses every put."""

    def put(self, key, data):
        raise StoreError("put", key, "it is down")


def run_store():
    store = MemoryStore()
    claim_attempt(store, b"")
    return store


def of(kind, told):
    return [event for event in told if isinstance(event, kind)]


def test_a_step_is_on_the_disk_while_the_store_hangs():
    """
    Nothing has come of the puts, and the local copy is whole.
    """
    store, local = Gated(), MemoryStore()
    claim_attempt(store, b"")
    told = []
    saving = threading.Thread(target=lambda: told.extend(save(1, store, local=local)))
    saving.start()
    store.asked.wait()
    until(lambda: numbers(local) == [1], "the step is on the disk")
    assert numbers(store) == []
    store.opened.set()
    saving.join()

    assert len(of(Committed, told)) == len(of(WrittenLocally, told)) == 1


def test_a_step_is_committed_while_the_disk_hangs(monkeypatch):
    """
    The write is given up soon after, with one event. What it finishes later is removed.
    """
    monkeypatch.setattr(step_push, "SPARE_S", 0.0)
    store, local = run_store(), Gated()
    told = save(1, store, local=local)

    assert numbers(store) == [1]
    assert len(of(Committed, told)) == len(of(LocalWriteFailed, told)) == 1
    assert "slower than the store" in of(LocalWriteFailed, told)[0].reason
    local.opened.set()
    until(lambda: not list(local.keys("")), "nothing of the step is left")
    assert not of(WrittenLocally, told)


def test_a_disk_that_hangs_is_given_up_though_the_store_is_down(monkeypatch):
    """
    Nothing has the step then, but the next one must not wait for a disk that finishes nothing.
    """
    monkeypatch.setattr(local_write, "STALL_S", 0.5)
    monkeypatch.setattr(step_push.StepPush, "_retry", lambda self, action: action())
    local = Gated()
    told = save(1, Down(), local=local)
    local.opened.set()  # else the interpreter waits at its end for the thread that hangs

    assert len(of(SaveAbandoned, told)) == 1
    assert "the local disk has finished no blob for " in of(LocalWriteFailed, told)[0].reason


def test_a_large_blob_may_take_longer(monkeypatch):
    """
    A blob of a GiB is not given up after the time of one of 64 MiB.
    """
    monkeypatch.setattr(local_write, "STALL_S", 0.01)
    monkeypatch.setattr(local_write, "SLOWEST_BYTES_PER_S", 4000)  # 2 s for the tensor below
    monkeypatch.setattr(step_push.StepPush, "_retry", lambda self, action: action())
    local = Gated()
    told = save(1, Down(), local=local, state={"both": {}, "own": torch.zeros(2000)})
    local.opened.set()

    assert "the local disk has finished no blob for 2 s" in of(LocalWriteFailed, told)[0].reason


def test_a_step_that_the_store_refused_is_still_written_to_the_disk(monkeypatch):
    """
    However slow the disk is: it is the only copy.
    """
    monkeypatch.setattr(step_push, "SPARE_S", 0.0)
    monkeypatch.setattr(step_push.StepPush, "_retry", lambda self, action: action())
    local = Gated()
    threading.Timer(0.5, local.opened.set).start()
    told = save(1, Down(), local=local)

    assert len(of(SaveAbandoned, told)) == len(of(WrittenLocally, told)) == 1
    assert numbers(local) == [1]


def test_nothing_is_written_to_a_disk_that_still_hangs():
    """
    So no more threads hang than one write has.
    """
    disk, opened = Disk(MemoryStore()), threading.Event()
    work = disk.begin(lambda: opened.wait() and None)
    with pytest.raises(StoreError, match="has not done the work"):
        disk.begin(lambda: None)
    opened.set()
    work.result()

    disk.begin(lambda: None).result()


def test_a_push_waits_a_while_until_old_copies_are_removed(monkeypatch):
    """
    The next step could not be written to the disk otherwise, which is healthy.
    """
    monkeypatch.setattr(step_push, "SPARE_S", 0.0)
    monkeypatch.setattr(step_push.StepPush, "_retry", lambda self, action: action())
    pruning, goes_on = threading.Event(), threading.Event()

    class Pruned(MemoryStore):
        def delete(self, key):
            if not pruning.is_set():
                threading.Timer(1.0, goes_on.set).start()
            pruning.set()
            goes_on.wait(DEADLINE_S)
            super().delete(key)

    class Later(MemoryStore):
        def put(self, key, data):
            assert pruning.wait(DEADLINE_S)
            super().put(key, data)

    local, store = Pruned(), Later()
    for step in (1, 2):
        save(step, Down(), local=local)  # its write may take any time
    claim_attempt(store, b"")

    told = save(3, store, local=local)

    assert numbers(local) == [3, 2]
    assert len(of(Committed, told)) == len(of(WrittenLocally, told)) == 1
