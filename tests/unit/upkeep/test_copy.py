"""A copy has the same bytes, is committed last, continues where it was killed, and never mixes two runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from steps import assert_same, assert_whole, load, numbers, save, state_of

from spot_plugins.cli import cp as command
from spot_plugins.errors import ConfigError, StoreError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import merge_manifests
from spot_plugins.format.kept import keep
from spot_plugins.format.keys import StepId, blob_key, rank_manifest_key
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.upkeep import copy as module
from spot_plugins.upkeep.copy import copy_run


@pytest.fixture
def url(tmp_path):
    """A run with three steps of two ranks, of which the first is kept."""
    store = LocalStore(str(tmp_path / "run"))
    store.put("run.json", b'{"format":1}')
    claim_attempt(store, b'{"host":"a"}')
    for step in (1, 2, 3):
        for rank in (0, 1):
            save(step, store, rank=rank, world_size=2, keep_last=9)
    merge_manifests(store, StepId(3, 1), 2)
    keep(store, 1, 1, "program", is_saving=False)
    return str(tmp_path / "run")


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "copy")


def contents(url):
    return {str(path.relative_to(url)): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def flip(path):
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)


def test_all_steps_are_copied_byte_for_byte(url, target):
    """With the run's own objects, claims, marks and merged manifests."""
    copied = copy_run(url, target, every=True)

    assert [each.step_id.step for each in copied] == [1, 2, 3]
    assert contents(target) == contents(url)
    assert_same(load(LocalStore(target)).state["part"], state_of(3))


def test_the_newest_step_alone_is_copied_by_default(url, target):
    """And a second call finds that everything is there."""
    (copied,) = copy_run(url, target)
    (again,) = copy_run(url, target)

    assert numbers(LocalStore(target)) == [3]
    assert (copied.num_put, copied.num_there, again.num_put, again.num_there, again.num_bytes) == (5, 0, 0, 5, 0)
    there = contents(target)
    assert there == {key: data for key, data in contents(url).items() if key in there}


def test_an_object_of_the_copy_that_is_damaged_is_put_again(url, target):
    """By its content, not by its size."""
    copy_run(url, target)
    flip(f"{target}/{blob_key(StepId(3, 1), 1, 0)}")
    flip(f"{target}/{rank_manifest_key(StepId(3, 1), 0, 2)}")

    (again,) = copy_run(url, target)

    assert (again.num_put, again.num_there) == (2, 3)
    assert_same(load(LocalStore(target)).state["part"], state_of(3))


class KilledError(BaseException):
    """Stands for SIGKILL."""


class DyingStore(LocalStore):
    """Writes as many objects as it is told, then kills the process."""

    def __init__(self, root, puts):
        super().__init__(root)
        self._left = puts

    def put(self, key, data):
        self._count()
        super().put(key, data)

    def put_if_absent(self, key, data):
        self._count()
        return super().put_if_absent(key, data)

    def _count(self):
        if not self._left:
            raise KilledError
        self._left -= 1


@pytest.mark.parametrize("num_puts", range(7))
def test_a_kill_at_any_put_leaves_a_copy_that_can_be_continued(url, target, monkeypatch, num_puts):
    """The step is not committed before the last manifest, and what was put is not put again."""
    monkeypatch.setattr(module, "NUM_GETS", 1)
    monkeypatch.setattr(module, "open_store", lambda url, options: DyingStore(url, num_puts))
    with pytest.raises(KilledError):
        copy_run(url, target)
    monkeypatch.undo()

    store = LocalStore(target)
    assert_whole(store)
    assert numbers(store) == ([3] if num_puts == 6 else [])
    put = len(contents(target))
    assert put == num_puts
    (again,) = copy_run(url, target)
    assert again.num_put == min(5, 7 - num_puts)
    assert numbers(store) == [3]


def test_a_damaged_step_is_not_copied(url, target):
    """The others are. Nothing of the damaged one is committed."""
    flip(f"{url}/{blob_key(StepId(2, 1), 1, 0)}")

    copied = copy_run(url, target, every=True)

    assert [each.problem is None for each in copied] == [True, False, True]
    assert "its hash differs" in copied[1].problem
    assert numbers(LocalStore(target)) == [3, 1]
    assert_whole(LocalStore(target))


class PruningStore(LocalStore):
    """Lets a training commit a newer step and prune the others before the first blob is read."""

    def __init__(self, root):
        super().__init__(root)
        self._is_done = False

    def get_into(self, key, start, targets):
        if key.endswith("safetensors") and not self._is_done:
            self._is_done = True
            save(4, LocalStore(self._root), keep_last=1)
        return super().get_into(key, start, targets)


def test_a_step_that_is_pruned_meanwhile_is_no_damage(url, target, monkeypatch):
    """The newest one is copied in its place."""
    stores = iter([PruningStore(url), LocalStore(url)])
    honest = module.open_objects
    monkeypatch.setattr(module, "NUM_GETS", 1)
    monkeypatch.setattr(module, "open_objects", lambda url, options: (next(stores), honest(url, options)[1]))

    (copied,) = copy_run(url, target)

    assert (copied.step_id.step, copied.problem, copied.is_gone) == (4, None, False)
    assert numbers(LocalStore(target)) == [4]


def test_the_user_reads_which_step_was_pruned_meanwhile(url, target, monkeypatch, capsys):
    """The kept step is left, and is copied. So the code is 0."""
    honest = module.open_objects
    store = PruningStore(url)
    monkeypatch.setattr(module, "NUM_GETS", 1)
    monkeypatch.setattr(module, "open_objects", lambda url, options: (store, honest(url, options)[1]))

    command.cp(url, target, every=True)

    printed = capsys.readouterr()
    assert "step 1 of attempt 1: put" in printed.out
    assert printed.err == "".join(
        f"spot cp: step {step} of attempt 1 was pruned meanwhile, so it was not copied\n" for step in (2, 3)
    )
    assert numbers(LocalStore(target)) == [1]


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda store: claim_attempt(store, b'{"host":"b"}'), "the target has an attempt of another start"),
        (lambda store: save(9, store, attempt=5), "the target has attempt 5, which this run has not"),
    ],
    ids=["claim", "step"],
)
def test_another_run_is_not_mixed_with_this_one(url, target, prepare, says):
    """A resume there could take a step of one run for a step of the other."""
    store = LocalStore(target)
    prepare(store)
    before = contents(target)

    with pytest.raises(ConfigError, match=f"{says}: another training has run there. Give a new URL"):
        copy_run(url, target)
    assert contents(target) == before


def test_a_training_that_begins_at_the_target_meanwhile_is_not_disturbed(url, target, monkeypatch):
    """It claims an attempt that the run does not have, after the check at the start."""

    class Claimed(LocalStore):
        def put(self, key, data):
            super().put(key, data)
            if key.endswith("safetensors"):
                claim_attempt(LocalStore(self._root), b'{"host":"c"}')

    monkeypatch.setattr(module, "open_store", lambda url, options: Claimed(url))

    with pytest.raises(ConfigError, match="the target has attempt 2, which this run has not"):
        copy_run(url, target)
    assert numbers(LocalStore(target)) == []


def test_a_training_that_claims_the_same_attempt_keeps_its_claim(url, target, monkeypatch):
    """It begins between the check and the put of the claim. Its claim is not replaced, and nothing is committed."""

    class Claimed(LocalStore):
        def put(self, key, data):
            if key == "run.json":
                claim_attempt(LocalStore(self._root), b'{"host":"c"}')
            super().put(key, data)

    monkeypatch.setattr(module, "open_store", lambda url, options: Claimed(url))

    with pytest.raises(ConfigError, match="the target has an attempt of another start"):
        copy_run(url, target)
    assert LocalStore(target).get("attempts/000001.json") == b'{"host":"c"}'
    assert numbers(LocalStore(target)) == []


def test_a_target_without_put_if_absent_gets_the_claims_too(url, target, monkeypatch):
    """As a training has it there."""

    class Plain(LocalStore):
        def put_if_absent(self, key, data):
            raise StoreError("put", key, "it has no put-if-absent", retryable=False)

    monkeypatch.setattr(module, "open_store", lambda url, options: Plain(url))

    copy_run(url, target, every=True)

    assert contents(target) == contents(url)


@pytest.mark.parametrize("suffix", ["", "/"])
def test_a_run_is_not_copied_onto_itself(url, suffix):
    """Nothing would be copied."""
    with pytest.raises(ConfigError, match="the target is the run itself: give another URL"):
        copy_run(url, url + suffix)


def test_a_run_without_a_committed_step_cannot_be_copied(tmp_path, target):
    """Nothing is put to the target."""
    claim_attempt(LocalStore(str(tmp_path / "new")), b"{}")

    with pytest.raises(ConfigError, match="there is no committed step at the URL of the run"):
        copy_run(str(tmp_path / "new"), target)
    assert not Path(target).exists()


def test_few_blobs_are_in_memory_at_a_time(monkeypatch):
    """Two blobs of which each needs most of the room are never in memory together."""
    store, target = MemoryStore(), MemoryStore()
    claim_attempt(store, b"{}")
    for rank in range(4):
        save(1, store, rank=rank, world_size=4)
    size = max(each.num_bytes for each in store.objects("steps/") if each.key.endswith("safetensors"))
    in_room = []
    honest = module.Room

    class Watched(honest):
        def __init__(self):
            super().__init__(3 * size)

    monkeypatch.setattr(module, "Room", Watched)
    monkeypatch.setattr(module, "open_objects", lambda url, options: (store, module.Objects(store)))
    monkeypatch.setattr(module, "open_store", lambda url, options: target)
    fetch = module.read_blob

    def read(place, named):
        in_room.append(1)
        try:
            assert len(in_room) == 1
            return fetch(place, named)
        finally:
            in_room.pop()

    monkeypatch.setattr(module, "read_blob", read)

    copy_run("memory://one", "memory://other")

    assert numbers(target) == [1]
