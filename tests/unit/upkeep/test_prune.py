"""What spot prune removes, what it never removes, and that a kill at any moment leaves every committed step whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import pytest
import typer
from steps import assert_whole, load, numbers, save

from spot_plugins.cli import prune as command
from spot_plugins.errors import SpotError, StoreError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.kept import keep
from spot_plugins.format.keys import StepId, blob_key, frozen_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.upkeep import prune as module
from spot_plugins.upkeep.prune import QUIET_S, check_newest, plan_prune, prune
from spot_plugins.upkeep.verify import verify

HASH = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    found = LocalStore(str(tmp_path))
    claim_attempt(found, b"{}")
    return found


def run(tmp_path, keep_last=1):
    """Prune and return the plan."""
    store, plan = plan_prune(str(tmp_path), keep_last)
    prune(store, plan, keep_last)
    return plan


def age(tmp_path, seconds=QUIET_S + 60):
    """Let all objects have been put long ago."""
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def steps_of(plan):
    return [each.step_id.step for each in plan.steps]


def freeze(store, step_id, attempt_also=()):
    """Let the only blob of a step be a frozen one. Return its key."""
    key = rank_manifest_key(step_id, 0, 1)
    manifest = RankManifest.decode(store.get(key))
    (blob,) = manifest.blobs
    frozen = type(blob)(key=frozen_key(blob.xxh3_128), num_bytes=blob.num_bytes, xxh3_128=blob.xxh3_128)
    store.put(frozen.key, store.get(blob.key))
    store.put(
        key,
        RankManifest(
            step_id=step_id, rank=0, world_size=1, blobs=(frozen,), tensors=manifest.tensors, state=manifest.state
        ).encode(),
    )
    return frozen.key


def test_a_plan_removes_nothing(store, tmp_path):
    """The dry run says which steps and how many bytes; the objects are all there afterwards."""
    for step in (1, 2, 3):
        save(step, store, keep_last=9)
    before = set(store.keys(""))

    _, plan = plan_prune(str(tmp_path), 1)

    assert steps_of(plan) == [1, 2]
    assert plan.num_bytes == sum(
        path.stat().st_size for step in (1, 2) for path in (tmp_path / StepId(step, 1).prefix).iterdir()
    )
    assert set(store.keys("")) == before


def test_old_steps_and_old_incomplete_ones_are_removed(store, tmp_path):
    """What somebody keeps stays, and so does an incomplete step that a rank may still be storing."""
    for step in (1, 2, 4, 5):
        save(step, store, keep_last=9)
    save(3, store, rank=1, world_size=2)
    save(6, store, rank=1, world_size=2)
    assert keep(store, 1, 2, "program", is_saving=False) is not None

    plan = run(tmp_path)

    assert steps_of(plan) == [1, 3, 4]
    assert numbers(store) == [5, 2]
    assert {key.split("/")[1][:10] for key in store.keys("steps/")} == {f"{step:010d}" for step in (2, 5, 6)}
    assert load(store).step_id.step == 5


def test_of_two_attempts_each_has_its_newest_steps(store, tmp_path):
    """As in a training: newer steps of an older attempt stay, because the newest attempt may be behind them."""
    save(8, store, keep_last=9)
    save(9, store, keep_last=9)
    claim_attempt(store, b"{}")
    save(5, store, attempt=2, keep_last=9)
    save(6, store, attempt=2, keep_last=9)

    assert steps_of(run(tmp_path)) == [5, 8]
    assert numbers(store) == [9, 6]


def test_orphans_stay_while_a_training_may_run(store, tmp_path, capsys):
    """A training names a frozen blob that the store has without putting it, so its age alone tells nothing."""
    save(1, store)
    orphan = frozen_key(HASH)
    store.put(orphan, b"old")
    os.utime(tmp_path / orphan, (0, 0))

    plan = run(tmp_path)

    assert (plan.orphans, store.get(orphan)) == ((), b"old")
    assert "the run was written to in the last 24 hours" in plan.left_because
    command.prune(str(tmp_path), 1)
    assert f"objects that no step may name are left, because {plan.left_because}\n" in capsys.readouterr().out


def test_orphans_of_a_quiet_run_are_removed(store, tmp_path, capsys):
    """Frozen blobs, blobs of a committed step and probes that nothing names; what any manifest names stays."""
    save(1, store)
    named = freeze(store, StepId(1, 1))
    save(2, store, rank=0, world_size=2)
    of_incomplete = blob_key(StepId(2, 1), 1, 0)
    leftover = blob_key(StepId(1, 1), 0, 7)
    for key in (frozen_key(HASH), leftover, of_incomplete, "probe/1234", "frozen/notes.txt", "mine.txt"):
        store.put(key, b"x")
    store.put("verified.json", b"{}")
    age(tmp_path)
    store.put("verified.json", b"{}")  # a verification is no training

    removed = {frozen_key(HASH), leftover, blob_key(StepId(1, 1), 0, 0), "probe/1234"}
    _, plan = plan_prune(str(tmp_path), 1)
    assert {each.key for each in plan.orphans} == removed
    assert plan.left_because is None

    command.prune(str(tmp_path), 1, delete=True)

    printed = capsys.readouterr().out
    assert f"{leftover}: no step names it, 1 B\n" in printed
    assert printed.endswith("removed 4 objects that no step names\n")
    there = set(store.keys(""))
    assert there.isdisjoint(removed)
    assert there >= {named, of_incomplete, "frozen/notes.txt", "mine.txt"}
    assert load(store).step_id.step == 1


def test_the_frozen_blob_of_a_removed_step_becomes_an_orphan(store, tmp_path):
    """One call removes the step and the blob that only this step named."""
    save(1, store)
    save(2, store)
    key = freeze(store, StepId(1, 1))
    age(tmp_path)

    plan = run(tmp_path)

    assert steps_of(plan) == [1]
    assert [each.key for each in plan.orphans] == [key]


@pytest.mark.parametrize("kind", ["incomplete", "kept"])
def test_orphans_stay_if_a_manifest_cannot_be_read(store, tmp_path, kind):
    """A damaged manifest of any step that stays may name them."""
    save(1, store)
    if kind == "kept":
        keep(store, 1, 1, "program", is_saving=False)
        save(2, store)
        broken = rank_manifest_key(StepId(1, 1), 0, 1)
    else:
        broken = rank_manifest_key(StepId(2, 1), 0, 2)
    store.put(broken, b"{}")
    store.put(frozen_key(HASH), b"x")
    age(tmp_path)

    plan = run(tmp_path)

    assert plan.left_because == "a manifest cannot be read, and may name them"
    assert store.get(frozen_key(HASH)) == b"x"


@pytest.mark.parametrize("damage", ["blob", "manifest"])
def test_nothing_is_removed_if_a_step_that_stays_is_damaged(store, tmp_path, damage):
    """A resume may need the older step then."""
    save(1, store)
    save(2, store)
    key = blob_key(StepId(2, 1), 0, 0) if damage == "blob" else rank_manifest_key(StepId(2, 1), 0, 1)
    (tmp_path / key).write_bytes(b"{}")

    with pytest.raises(SpotError, match=r"step 2 is not intact: .* Nothing is removed, because an older step may be"):
        plan_prune(str(tmp_path), 1)


@pytest.mark.parametrize("is_verified", [False, True], ids=["", "verified before"])
def test_a_changed_byte_of_the_newest_step_keeps_the_older_ones(store, tmp_path, capsys, is_verified):
    """Sizes do not tell it. A verification before the damage is no reason to remove the last good step."""
    for step in (1, 2):
        save(step, store, keep_last=9)
    if is_verified:
        assert verify(str(tmp_path)).is_good
    key = blob_key(StepId(2, 1), 0, 0)
    data = store.get(key)
    (tmp_path / key).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(typer.Exit) as exited:
        command.prune(str(tmp_path), 1, delete=True)

    assert exited.value.exit_code == 1
    assert f"spot prune: step 2 is not intact: {key} has changed since it was written" in capsys.readouterr().err
    assert numbers(store) == [2, 1]
    assert load(store).step_id.step == 1
    store.put(key, data)
    command.prune(str(tmp_path), 1, delete=True)
    assert numbers(store) == [2]


def test_nothing_is_removed_if_no_step_could_be_read(store, tmp_path, monkeypatch):
    """A training prunes each one meanwhile. A plan that removes no committed step reads nothing."""
    for step in (1, 2):
        save(step, store, keep_last=9)
    _, plan = plan_prune(str(tmp_path), 1)
    gone = verify(str(tmp_path))
    steps = tuple(dataclasses.replace(each, is_gone=True) for each in gone.steps)
    monkeypatch.setattr(module, "verify", lambda *_, **__: dataclasses.replace(gone, steps=steps))

    with pytest.raises(SpotError, match="nothing is removed, because a training has pruned each step before all of"):
        check_newest(str(tmp_path), plan)
    check_newest(str(tmp_path), dataclasses.replace(plan, steps=()))


def test_a_store_that_tells_no_times_keeps_its_orphans(monkeypatch):
    """The age of a run cannot be known there."""

    class Timeless(MemoryStore):
        def objects(self, prefix):
            return (type(each)(each.key, each.num_bytes, None) for each in super().objects(prefix))

    store = Timeless()
    save(1, store)
    store.put(frozen_key(HASH), b"x")
    monkeypatch.setattr("spot_plugins.upkeep.listing.open_store", lambda url, options: store)

    assert plan_prune("memory://any", 1)[1].left_because == "the store does not tell when objects were put"


class KilledError(BaseException):
    """Stands for SIGKILL."""


class DyingStore(LocalStore):
    """Deletes as many objects as it is told, one after the other, then kills the process."""

    def __init__(self, root, deletes):
        super().__init__(root)
        self._left = deletes

    def delete(self, key):
        if not self._left:
            raise KilledError
        self._left -= 1
        super().delete(key)


@pytest.mark.parametrize("num_deletes", range(9))
def test_a_kill_at_any_delete_leaves_committed_steps_whole(store, tmp_path, monkeypatch, num_deletes):
    """Two steps of two ranks and an orphan have nine objects. The next call removes the rest."""
    for step in (1, 2, 3):
        for rank in (0, 1):
            save(step, store, rank=rank, world_size=2, keep_last=9)
    store.put(frozen_key(HASH), b"x")
    age(tmp_path)
    monkeypatch.setattr(module, "NUM_DELETES", 1)
    _, plan = plan_prune(str(tmp_path), 1)

    with pytest.raises(KilledError):
        prune(DyingStore(str(tmp_path), num_deletes), plan, 1)

    assert_whole(store)
    assert numbers(store)[0] == 3
    age(tmp_path)
    run(tmp_path)
    assert numbers(store) == [3]
    assert len(list(store.keys("steps/"))) == 4
    assert list(store.keys("frozen/")) == []


def test_what_is_kept_since_the_plan_was_made_stays(store, tmp_path):
    """A training may mark a step at any time, and another command may have removed newer ones."""
    for step in (1, 2, 3):
        save(step, store, keep_last=9)
    opened, plan = plan_prune(str(tmp_path), 1)
    keep(store, 1, 1, "program", is_saving=False)
    shutil.rmtree(tmp_path / StepId(3, 1).prefix)
    told = []

    prune(opened, plan, 1, told.append)

    assert numbers(store) == [2, 1]
    assert told == [
        "step 1 of attempt 1 is needed by now, and stays",
        "step 2 of attempt 1 is needed by now, and stays",
    ]


def test_what_is_kept_while_others_are_removed_stays(store, tmp_path):
    """The marks are looked at again before each step."""
    for step in (1, 2, 3):
        save(step, store, keep_last=9)
    opened, plan = plan_prune(str(tmp_path), 1)

    prune(opened, plan, 1, lambda text: keep(store, 1, 2, "program", is_saving=False))

    assert numbers(store) == [3, 2]


class Undeletable(LocalStore):
    """Refuses to delete, as a bucket that these credentials may only read and write."""

    def delete(self, key):
        raise StoreError("delete", key, "no permission", retryable=False)


def test_no_permission_to_delete_is_said(store, tmp_path):
    """Nothing is lost."""
    save(1, store)
    save(2, store)
    _, plan = plan_prune(str(tmp_path), 1)

    with pytest.raises(StoreError, match=r"cannot delete .*: no permission"):
        prune(Undeletable(str(tmp_path)), plan, 1)
    assert_whole(store)
    assert numbers(store) == [2, 1]


def test_a_step_that_a_training_prunes_meanwhile_is_no_damage(tmp_path, monkeypatch):
    """The training commits steps and prunes between the listing of the objects and the look at them."""
    store = LocalStore(str(tmp_path))
    for step in (1, 2, 3):
        save(step, store, keep_last=9)
    honest = module.inspect

    def late(*words):
        if not Path(tmp_path / StepId(4, 1).prefix).exists():
            save(4, store, keep_last=1)
        return honest(*words)

    monkeypatch.setattr(module, "inspect", late)

    opened, plan = plan_prune(str(tmp_path), 1)
    prune(opened, plan, 1)

    assert numbers(store) == [4]
