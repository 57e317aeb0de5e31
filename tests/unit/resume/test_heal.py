"""A step that is damaged in the store and whole on the local disks is repaired, not passed over."""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from functools import partial
from itertools import count

import pytest
from hearing import Heard
from sick_disks import SickDisk
from steps import URL, Holder, assert_same, numbers, save, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.errors import StoreError
from spot_plugins.events import CheckpointRejected, EventBus, Resumed, StoreDamaged
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, attempt_key, blob_key, rank_manifest_key
from spot_plugins.ranks import Job
from spot_plugins.resume.heal import heal
from spot_plugins.resume.newest import load_newest
from spot_plugins.resume.salvage import salvage
from spot_plugins.session import SpotSession
from spot_plugins.store import LimitedStore, LocalDisk, LocalStore, MemoryStore
from spot_plugins.testing import run_thread_ranks

NEWEST = StepId(2, 1)


class Machines:
    """Steps 1 and 2 are committed, and a disk per rank has its copies."""

    def __init__(self, world_size, folder):
        self.store = MemoryStore()
        self.disks = [LocalStore(str(folder / str(rank))) for rank in range(world_size)]
        self.resume()
        for step in (1, 2):
            for rank, disk in enumerate(self.disks):
                save(step, self.store, rank=rank, world_size=world_size, local=disk)
        self.before = self.objects()

    def objects(self):
        return {key: self.store.get(key) for key in self.store.keys("steps/")}

    def resume(self):
        """Start the next process life. Return the step that each rank loaded, and what each was told."""
        attempt = claim_attempt(self.store, uuid.uuid4().bytes)

        def body(ranks):
            told, job, local = [], Job(ranks, ranks.open_board()), self.disks[ranks.rank]
            bus = EventBus(told.append)
            salvage(self.store, local, job, attempt, bus)
            repair = partial(heal, self.store, local, job, attempt)
            return load_newest(self.store, local, URL, job, bus, heal=repair), told

        return zip(*run_thread_ranks(len(self.disks), body), strict=True)


@pytest.fixture(params=[1, 2], ids="{} ranks".format)
def machines(request, tmp_path):
    return Machines(request.param, tmp_path)


def cut(data):
    return data[:100]


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def changed(data):
    return data.replace(b'"rank":', b'"Rank":')


def assert_repaired(machines, steps, told, key):
    assert [step.step_id for step in steps] == [NEWEST] * len(steps)
    for rank, step in enumerate(steps):
        assert_same(step.state["part"], state_of(2, rank))
    for events in told:
        (repaired,) = [event for event in events if isinstance(event, StoreDamaged)]
        assert (repaired.key, repaired.is_repaired) == (key, True)
        assert not [event for event in events if isinstance(event, CheckpointRejected)]
    assert machines.objects() == machines.before


@pytest.mark.parametrize("damage", [cut, changed, lambda data: b""], ids=["cut", "changed", "empty"])
def test_a_damaged_manifest_of_the_newest_step_is_stored_again(damage, machines, caplog):
    """
    The store has what it had before, and a warning says so. No step is lost.
    """
    world_size = len(machines.disks)
    key = rank_manifest_key(NEWEST, world_size - 1, world_size)
    machines.store.put(key, damage(machines.store.get(key)))
    steps, told = machines.resume()

    assert_repaired(machines, steps, told, key)
    assert key in caplog.text
    assert "It was stored again from a local copy" in caplog.text


def test_a_local_manifest_without_end_takes_no_memory(machines, tmp_path):
    """
    A blob is damaged in the store and on the disk, and the local manifest is a file of a terabyte, most of it a hole.
    """
    rank, world_size = len(machines.disks) - 1, len(machines.disks)
    for store in (machines.store, machines.disks[rank]):
        store.put(blob_key(NEWEST, rank, 0), b"")
    os.truncate(tmp_path / str(rank) / rank_manifest_key(NEWEST, rank, world_size), 2**40)
    steps, _ = machines.resume()

    assert [step.step_id for step in steps] == [(1, 1)] * world_size


@pytest.mark.parametrize("damage", [cut, flip, None], ids=["cut", "flipped", "gone"])
def test_a_blob_that_only_the_disk_of_another_rank_has_is_stored_again(damage, tmp_path):
    """
    The launcher has numbered the machines anew.
    """
    machines = Machines(2, tmp_path)
    machines.disks.reverse()
    key = blob_key(NEWEST, 1, 0)
    if damage is None:
        machines.store.delete(key)
    else:
        machines.store.put(key, damage(machines.store.get(key)))
    steps, told = machines.resume()

    assert_repaired(machines, steps, told, key)


def assert_left_alone(machines, steps, told, damaged):
    assert [step.step_id.step for step in steps] == [1] * len(steps)
    assert all([type(event) for event in events] == [CheckpointRejected] for events in told)
    assert {**machines.objects(), **damaged} == machines.objects()


def test_copies_of_another_run_repair_nothing(machines):
    """
    Their attempt has another claim than that of the same number in the store.
    """
    key = rank_manifest_key(NEWEST, 0, len(machines.disks))
    machines.store.put(key, b"damaged")
    for disk in machines.disks:
        disk.put(attempt_key(1), b"the claim of another run")
    steps, told = machines.resume()

    assert_left_alone(machines, steps, told, {key: b"damaged"})


@pytest.mark.parametrize("kind", ["blob", "manifest"])
def test_a_damaged_copy_repairs_nothing(kind, machines, caplog):
    """
    Neither is put to the store.
    """
    world_size = len(machines.disks)
    key = rank_manifest_key(NEWEST, 0, world_size)
    machines.store.put(key, b"damaged")
    copy = key if kind == "manifest" else blob_key(NEWEST, 0, 0)
    machines.disks[0].put(copy, flip(machines.disks[0].get(copy)) if kind == "blob" else b"x")
    steps, told = machines.resume()

    assert_left_alone(machines, steps, told, {key: b"damaged"})
    assert "step 2 cannot be repaired from the local disk: " in caplog.text


def test_an_intact_manifest_is_not_replaced_by_another_one(tmp_path):
    """
    The copy on the disk is of an earlier try of the step, with other bytes.
    """
    machines = Machines(1, tmp_path)
    save(2, MemoryStore(), local=machines.disks[0], state=state_of(7))
    blob = blob_key(NEWEST, 0, 0)
    machines.store.put(blob, cut(machines.store.get(blob)))
    steps, told = machines.resume()

    assert_left_alone(machines, steps, told, {blob: cut(machines.before[blob])})


def test_a_session_finds_a_repaired_step_when_it_peeks_and_when_it_resumes(tmp_path):
    """
    Both find the same step, with the real pusher before them.
    """
    config = SpotConfig(url=str(tmp_path / "store"), local_dir=str(tmp_path / "local"), every_steps=10**6)
    for last in (1, 2):
        with closing(SpotSession(config)) as session:
            session.register("part", Holder(state_of(last)))
            session.resume()
            session.finish(last)
    store = LocalStore(str(tmp_path / "store"))
    assert numbers(store) == [2, 1]
    store.put(rank_manifest_key(StepId(2, 2), 0, 1), b"")
    heard = Heard()
    with closing(SpotSession(config, on_event=[heard])) as session:
        holder = Holder(state_of(9))
        session.register("part", holder)
        assert session.peek().step == 2
        assert session.resume() == 2

    assert heard.of(Resumed, step=2)
    assert not heard.of(CheckpointRejected)


class Hiccup(LocalStore):
    """Fails once at each object and each listing."""

    def __init__(self, root):
        super().__init__(root)
        self.failed = set()

    def fail_once(self, key):
        if key not in self.failed:
            self.failed.add(key)
            raise StoreError("get", key, "Input/output error")

    def get(self, key):
        self.fail_once(f"get {key}")
        return super().get(key)

    def get_into(self, key, start, targets):
        self.fail_once(f"get_into {key}")
        return super().get_into(key, start, targets)

    def keys(self, prefix):
        self.fail_once(f"keys {prefix}")
        return super().keys(prefix)


def test_one_error_of_the_disk_costs_no_step(tmp_path):
    """
    Whatever a salvage reads is read once more.
    """
    machines = Machines(2, tmp_path)
    for rank, disk in enumerate(machines.disks):
        save(3, MemoryStore(), rank=rank, world_size=2, local=disk)
    machines.disks = [Hiccup(str(tmp_path / str(rank))) for rank in range(2)]
    steps, _ = machines.resume()

    assert [step.step_id for step in steps] == [(3, 1)] * 2
    assert numbers(machines.store) == [3, 2, 1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_disk_that_hangs_meanwhile_is_given_up(world_size, tmp_path, caplog):
    """It does so at its first, second, third ... act. All ranks use the step before if this one stays damaged."""
    loaded = []
    for first in count():
        caplog.clear()
        folder = tmp_path / str(first)
        machines = Machines(world_size, folder)
        key = blob_key(NEWEST, world_size - 1, 0)
        machines.store.put(key, cut(machines.store.get(key)))
        machines.disks[-1] = LimitedStore(machines.disks[-1], LocalDisk("its disk"))
        with SickDisk(folder / str(world_size - 1), first=first) as sick:
            steps, _ = machines.resume()
        loaded.append(steps[0].step_id.step)
        for rank, step in enumerate(steps):
            assert_same(step.state["part"], state_of(loaded[-1], rank))
        if not sick.hangs.is_set():
            break
        assert caplog.text.count("the local disk has not answered for 0 s at its disk") == 1
    assert (loaded[0], loaded[-1]) == (1, 2)
