"""A step becomes visible all at once, and an old process life is kept out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations

import pytest

from spot_plugins.errors import StoreError, SupersededError
from spot_plugins.format.attempts import check_newest, claim_attempt, newest_attempt
from spot_plugins.format.commit import commit, committed_steps
from spot_plugins.format.keys import StepId, attempt_key, rank_manifest_key
from spot_plugins.format.manifest import RankManifest
from spot_plugins.store import LocalStore, MemoryStore

ALL_SUBSETS = list(chain.from_iterable(combinations(range(4), count) for count in range(5)))


def manifest_of(step, attempt=1, rank=0, world_size=1):
    return RankManifest(
        step_id=StepId(step, attempt), rank=rank, world_size=world_size, blobs=(), tensors=(), state=None
    )


@pytest.mark.parametrize("silent", ALL_SUBSETS, ids=str)
def test_a_step_is_visible_exactly_when_every_rank_committed(silent):
    """
    Whichever ranks never put their manifest, and in whichever order the others did, a reader sees all or nothing.
    """
    store = MemoryStore()
    for rank in reversed(range(4)):
        if rank not in silent:
            commit(manifest_of(1, rank=rank, world_size=4), store)
            assert committed_steps(store) == [] or (rank == 0 and not silent)

    assert [found.step_id for found in committed_steps(store)] == ([] if silent else [StepId(1, 1)])


def test_steps_are_listed_newest_first_and_the_later_attempt_first():
    """
    The order in which a reader tries them: by step, then by attempt; with more digits too.
    """
    store = MemoryStore()
    ids = [StepId(9, 1), StepId(10, 1), StepId(10, 2), StepId(10**10, 1), StepId(5, 10**6)]
    for step, attempt in ids:
        store.put(rank_manifest_key(StepId(step, attempt), 0, 1), b"")

    assert [found.step_id for found in committed_steps(store)] == sorted(ids, reverse=True)


def test_manifests_of_different_world_sizes_do_not_add_up():
    """
    Half of a step by two ranks and one of three by three ranks are no step.
    """
    store = MemoryStore()
    step_id = StepId(1, 1)
    for rank, world_size in ((0, 2), (1, 3), (2, 3), (0, 4)):
        store.put(rank_manifest_key(step_id, rank, world_size), b"")
    assert committed_steps(store) == []

    store.put(rank_manifest_key(step_id, 1, 2), b"")
    assert [found.world_size for found in committed_steps(store)] == [2]


def test_keys_that_others_made_up_do_no_harm():
    """
    A manifest's name is believed only with all the others: not for no ranks, nor for more than memory can count.
    """
    store = MemoryStore()
    for key in (
        "steps/0000000001-000001/rank-00000-of-00000.json",
        "steps/0000000001-000001/rank-00000-of-99999999999999.json",
        "steps/0000000001-000001/rank-00003-of-00001.json",
        "steps/0000000001-000001/rank-00000-of-00001.json.bak",
        "steps/1-1/rank-00000-of-00001.json",
        "steps/notes.txt",
    ):
        store.put(key, b"")

    assert committed_steps(store) == []


def test_attempts_are_counted_from_one():
    """
    Each process life gets the next number, beyond the sixth digit too, and other objects there do not count.
    """
    store = MemoryStore()
    assert newest_attempt(store) == 0
    assert [claim_attempt(store, b"me") for _ in range(3)] == [1, 2, 3]

    store.put(attempt_key(999_999), b"")
    store.put("attempts/readme.txt", b"")
    assert claim_attempt(store, b"me") == 1_000_000
    assert newest_attempt(store) == 1_000_000


def test_racing_claims_get_different_attempts(tmp_path):
    """
    Of many that start at once no two believe to be the same attempt, on memory and on a file system.
    """
    for store in (MemoryStore(), LocalStore(str(tmp_path))):
        with ThreadPoolExecutor(8) as pool:
            claimed = list(pool.map(lambda number, store=store: claim_attempt(store, b"%d" % number), range(16)))

        assert len(set(claimed)) == 16
        assert newest_attempt(store) == max(claimed)


class NoPutIfAbsent(MemoryStore):
    """A store as sftp is one."""

    def put_if_absent(self, key, data):
        raise StoreError("put", key, "there is no such thing here", retryable=False)


class Unreachable(MemoryStore):
    def put_if_absent(self, key, data):
        raise StoreError("put", key, "no route to host")


def test_a_store_without_put_if_absent_is_used_with_a_warning(caplog):
    """
    The claim is made nevertheless, and the user is told what is no longer certain.
    """
    store = NoPutIfAbsent()

    assert [claim_attempt(store, b"") for _ in range(2)] == [1, 2]
    assert "at the same moment get the same attempt" in caplog.text


def test_a_claim_that_failed_is_not_a_claim():
    """
    A store that does not answer is no store without put-if-absent: the failure is told, nothing is overwritten.
    """
    store = Unreachable()

    with pytest.raises(StoreError, match="no route to host"):
        claim_attempt(store, b"")

    assert list(store.keys("")) == []


def test_an_older_attempt_writes_no_manifest():
    """
    Once a newer attempt is claimed the older one's commit is refused, and what it had committed stays.
    """
    store = MemoryStore()
    old = claim_attempt(store, b"old")
    commit(manifest_of(1, attempt=old), store)
    new = claim_attempt(store, b"new")

    with pytest.raises(SupersededError, match="another process trains this run") as caught:
        commit(manifest_of(2, attempt=old), store)

    assert (caught.value.attempt, caught.value.newest) == (old, new)
    assert [found.step_id for found in committed_steps(store)] == [StepId(1, old)]
    check_newest(store, new)
    commit(manifest_of(2, attempt=new), store)
    assert committed_steps(store)[0].step_id == StepId(2, new)
