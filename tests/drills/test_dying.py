"""Promises 1 and 2: whichever write a save dies at, the newest committed step is found, and never a half one."""

from __future__ import annotations

import json
import os
import signal
from itertools import count
from pathlib import Path

import pytest
from drill_settings import Settings
from hearing import Heard, until_idle
from launching import exit_codes, launch
from steps import Holder, assert_same, assert_whole, load, load_on_all, numbers, save, state_of

import spot_plugins
from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, Pruned, SaveAbandoned
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, parse_rank_manifest_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.push import local_write
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore, MemoryStore

RANKS = 2
KILLING = Path(__file__).with_name("killing")


@pytest.fixture(autouse=True)
def one_local_step(monkeypatch):
    """Each save removes the older copy on the local disk, so that the tests die in there, too."""
    monkeypatch.setattr(local_write, "LOCAL_STEPS", 1)


class KilledError(BaseException):
    """Stands for SIGKILL: no ``except Exception`` may survive it."""


class Life:
    """A process that dies after so many writes, to whichever store they go, and does nothing any more."""

    def __init__(self, num_writes):
        self.left = num_writes
        self.is_over = False

    def spend(self):
        if self.left == 0:
            self.is_over = True
            raise KilledError
        self.left -= 1


class DyingStore:
    """Passes everything through to *store* while *life* lasts."""

    def __init__(self, store, life):
        self._store = store
        self._life = life

    def put(self, key, data):
        self._life.spend()
        self._store.put(key, data)

    def put_if_absent(self, key, data):
        self._life.spend()
        return self._store.put_if_absent(key, data)

    def delete(self, key):
        self._life.spend()
        self._store.delete(key)

    def __getattr__(self, name):
        return getattr(self._store, name)


class Machine:
    """The remote store and a local disk per rank, with step 1 committed everywhere."""

    def __init__(self):
        self.remote = MemoryStore()
        self.locals = [MemoryStore() for _ in range(RANKS)]
        claim_attempt(self.remote, b"")
        for rank in range(RANKS):
            self.save(1, rank)

    def save(self, step, rank, life=None, attempt=1):
        """Save as *rank*, which lives on with *life*; None is for ever. Return whether it lived to the end."""
        life = life or Life(-1)
        if life.is_over:
            return False
        try:
            save(
                step,
                DyingStore(self.remote, life),
                rank=rank,
                world_size=RANKS,
                local=DyingStore(self.locals[rank], life),
                attempt=attempt,
                keep_last=1,
            )
        except KilledError:
            return False
        return True

    def assert_sound(self):
        """Whatever happened, a reader finds step 1 or 2, whole and as saved: the newest that is committed."""
        assert_whole(self.remote)
        for local in self.locals:
            assert_manifests_have_their_blobs(local)
        committed = numbers(self.remote)
        assert committed in ([1], [2], [2, 1])
        for local in (None, self.locals[0]):
            loaded = load_on_all(self.remote, RANKS, local)
            for rank, step in enumerate(loaded):
                assert step.step_id.step == committed[0]
                assert_same(step.state["part"], state_of(committed[0], rank))
        return committed[0]

    def assert_goes_on(self):
        """A new attempt saves the next step as if nothing had happened, and nothing of the old one is left."""
        attempt = claim_attempt(self.remote, b"")
        for rank in reversed(range(RANKS)):
            assert self.save(3, rank, attempt=attempt)
        assert numbers(self.remote) == [3]
        assert all(key.startswith("steps/0000000003-") for key in self.remote.keys("steps/"))
        assert [step.step_id for step in load_on_all(self.remote, RANKS)] == [(3, attempt)] * RANKS


def assert_manifests_have_their_blobs(store):
    for key in store.keys("steps/"):
        if parse_rank_manifest_key(key) is not None:
            for blob in RankManifest.decode(store.get(key)).blobs:
                assert len(store.get(blob.key)) == blob.num_bytes


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_job_that_dies_at_any_write_of_a_save_resumes_from_the_newest_committed_step(order):
    """
    All ranks die at the n-th write, for every n: blobs and manifests on the local disks and in the store, and the
    removal of the older step.
    """
    seen = []
    for num_writes in count():
        machine = Machine()
        life = Life(num_writes)
        lived = [machine.save(2, rank, life) for rank in order]
        seen.append(machine.assert_sound())
        machine.assert_goes_on()
        if all(lived):
            break

    # The disk and the store are written to side by side, so which write is the n-th differs from run to run.
    assert seen[0] == 1
    assert seen[-1] == 2
    assert num_writes >= 2 * RANKS * 2, "a blob and a manifest per rank, on both"
    assert 1 in seen[1:-1]
    if order == (1, 0):  # rank 0 came last, so it removed step 1, and died at each of those writes too
        assert numbers(machine.remote) == [3]
        assert seen.count(2) > 4


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize("dying", range(RANKS))
def test_one_rank_that_dies_at_any_write_takes_only_its_own_step_with_it(order, dying):
    """
    One machine is taken at the n-th write, for every n, while the other finishes its part: step 2 is found exactly if
    the dying rank had put its manifest.
    """
    for num_writes in count():
        machine = Machine()
        life = Life(num_writes)
        lived = {rank: machine.save(2, rank, life if rank == dying else None) for rank in order}
        found = machine.assert_sound()
        manifest_is_there = any(
            name is not None and name.step_id.step == 2 and name.rank == dying
            for name in map(parse_rank_manifest_key, machine.remote.keys("steps/"))
        )
        assert found == (2 if manifest_is_there else 1)
        machine.assert_goes_on()
        if lived[dying]:
            break
    assert num_writes >= 4


def test_a_push_that_was_lost_after_its_commit_writes_nothing_again():
    """
    A pusher that died before it could tell: pushed again, the step is found committed, and its objects, which a reader
    may be using, stay as they are. One that had not come so far is stored.
    """
    store, other = MemoryStore(), state_of(99)
    claim_attempt(store, b"")
    save(2, store)
    before = {key: store.get(key) for key in store.keys("")}

    told = save(2, store, state=other, again=True)
    assert {key: store.get(key) for key in store.keys("")} == before
    assert [type(event) for event in told] == [Committed]

    store.delete(rank_manifest_key(StepId(2, 1), 0, 1))
    save(2, store, state=other, again=True)
    assert_same(load(store).state["part"], other)


def test_a_process_killed_at_any_file_operation_leaves_no_half_step(tmp_path):
    """
    A real process, two directories on a real disk, SIGKILL before the n-th operation on files, for every n: what it
    leaves is read by this process.
    """
    process = launch("dying_push", (Settings(folder=str(tmp_path)),), environment={}, output=tmp_path / "output.txt")
    assert exit_codes([process]) == [0], (tmp_path / "output.txt").read_text()

    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 30, "every put is several operations"
    for number, code in enumerate(codes):
        assert_left_sound(tmp_path / str(number), finished=code == 0)


def test_a_pusher_killed_at_any_write_loses_that_step_at_most(tmp_path, monkeypatch):
    """
    The real pusher of a real session gets SIGKILL before its n-th write to a directory, for every n, removals included.
    So does each pusher that takes its place. The session is told what became of the step, and a reader finds the same.
    """
    package = Path(spot_plugins.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(KILLING), str(package)]))
    for num_writes in count():
        monkeypatch.setenv("KILL_AT", str(num_writes))
        monkeypatch.setenv("KILLED", str(killed := tmp_path / f"{num_writes}.killed"))
        folder = tmp_path / str(num_writes)
        claim_attempt(LocalStore(str(folder / "remote")), b"")
        save(1, LocalStore(str(folder / "remote")), local=LocalStore(str(folder / "local")))
        heard = Heard()
        config = SpotConfig(url=str(folder / "remote"), local_dir=str(folder / "local"), every_steps=1, keep_last=1)
        session = SpotSession(config, on_event=[heard])
        session.register("part", holder := Holder(state_of(2)), replicated=("both",))
        session.resume()
        holder.state = state_of(2)
        session.save(2)
        until_idle(session)
        session.close()

        committed = len(heard.of(Committed, step=2)) == 1
        assert committed != bool(heard.of(SaveAbandoned, step=2))
        assert_left_sound(folder, finished=False)
        assert 2 in numbers(LocalStore(str(folder / "remote"))) or not committed
        if not killed.exists():
            break
    assert committed
    assert heard.of(Pruned, step=1)
    assert num_writes >= 6, "a blob and a manifest, on the disk and in the store, and what the removals delete"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_pusher_killed_once_at_any_write_loses_nothing(moment, tmp_path, monkeypatch):
    """
    SIGKILL before, or right after, its n-th write, for every n: another process finishes the step without any call of
    the training. Right after the manifest, it is committed already and its commit was never told.
    """
    package = Path(spot_plugins.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(KILLING), str(package)]))
    monkeypatch.setenv("KILL_ONCE", "1")
    if moment == "after":
        monkeypatch.setenv("KILL_AFTER", "1")
    for num_writes in count():
        monkeypatch.setenv("KILL_AT", str(num_writes))
        monkeypatch.setenv("KILLED", str(killed := tmp_path / f"{num_writes}.killed"))
        folder = tmp_path / str(num_writes)
        claim_attempt(LocalStore(str(folder / "remote")), b"")
        heard = Heard()
        config = SpotConfig(url=str(folder / "remote"), local_dir=str(folder / "local"), every_steps=1, keep_last=2)
        session = SpotSession(config, on_event=[heard])
        session.register("part", Holder(state_of(2)), replicated=("both",))
        session.open()
        session.resume()
        session.save(2)
        heard.wait(Committed, step=2)
        until_idle(session)
        session.close()

        assert len(heard.of(Committed, step=2)) == 1
        assert not heard.of(SaveAbandoned)
        assert_left_sound(folder, finished=True)
        if not killed.exists():
            break
    assert num_writes >= 4, "a blob and a manifest, on the disk and in the store"


def assert_left_sound(folder, finished):
    store, local = LocalStore(str(folder / "remote")), LocalStore(str(folder / "local"))
    assert_whole(store)
    assert_manifests_have_their_blobs(local)
    committed = numbers(store)
    assert committed == [2] if finished else committed in ([1], [2], [2, 1])
    for place in (None, local):
        loaded = load(store, local=place)
        assert loaded.step_id.step == committed[0]
        assert_same(loaded.state["part"], state_of(committed[0]))
