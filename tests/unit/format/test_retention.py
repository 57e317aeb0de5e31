"""The checkpoints that stay, and that none is ever half there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import assert_whole, load_on_all, numbers, save

from spot_plugins.errors import StoreError, SupersededError
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.commit import committed_steps
from spot_plugins.format.keys import StepId
from spot_plugins.format.retention import prune, removable
from spot_plugins.store import MemoryStore

step_ids = st.builds(StepId, st.integers(1, 12), st.integers(1, 3))


def ids(*steps, attempt=1):
    return [StepId(step, attempt) for step in steps]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [
        (1, None, ids(10, 20, 30, 40)),
        (2, None, ids(10, 20, 30)),
        (9, None, []),
        (1, 20, ids(10, 30)),
        (1, 7, ids(10, 20, 30, 40)),
        (3, 20, ids(10)),
    ],
)
def test_the_newest_and_every_so_many_stay(keep_last, keep_every, expected):
    """
    keep_last counts committed checkpoints; keep_every adds those whose step is a multiple. The oldest goes first.
    """
    committed = ids(50, 40, 30, 20, 10)

    assert removable(committed, set(committed), keep_last=keep_last, keep_every=keep_every) == expected


def test_what_is_not_committed_goes_when_a_newer_one_is():
    """
    A slow rank may still be on its way to the newest; what was overtaken is rubbish.
    """
    present = set(ids(10, 20, 30, 40))

    assert removable(ids(30), present, keep_last=2, keep_every=None) == ids(10, 20)
    assert removable([], present, keep_last=2, keep_every=None) == []


def test_a_training_that_fell_back_behind_a_damaged_checkpoint_keeps_its_own():
    """
    Steps 9 and 10 of attempt 1 are damaged, so attempt 2 went on from 5: its steps are older by number, but they are
    all that can be resumed from, so neither what it committed nor what its ranks are still storing goes.
    """
    damaged = ids(10, 9)
    mine = ids(7, 6, attempt=2)
    storing = StepId(8, 2)

    removed = removable([*damaged, *mine, *ids(5)], {*damaged, *mine, *ids(5), storing}, keep_last=2, keep_every=5)

    assert removed == []
    removed = removable(
        [*damaged, *ids(8, 7, 6, attempt=2)], {*damaged, *ids(8, 7, 6, attempt=2)}, keep_last=2, keep_every=None
    )
    assert removed == [StepId(6, 2)]


@given(
    committed=st.sets(step_ids),
    partial=st.sets(step_ids),
    keep_last=st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 5),
)
def test_never_too_much_and_never_too_little(committed, partial, keep_last, keep_every):
    """
    The newest keep_last always stay, of all and of the newest attempt; and no more than these, the multiples of
    keep_every, and what may still become whole.
    """
    in_order = sorted(committed, reverse=True)
    present = committed | partial

    removed = removable(in_order, present, keep_last=keep_last, keep_every=keep_every)

    last_attempt = max((step_id.attempt for step_id in committed), default=0)
    of_last = [step_id for step_id in in_order if step_id.attempt == last_attempt]
    newest = {*in_order[:keep_last], *of_last[:keep_last]}
    every = {step_id for step_id in committed if keep_every and step_id.step % keep_every == 0}
    open_ = {p for p in partial - committed if not any(c > p and c.attempt >= p.attempt for c in committed)}
    assert present - set(removed) == newest | every | open_
    assert removed == sorted(removed)


@given(
    committed=st.sets(step_ids),
    partial=st.sets(step_ids),
    marked=st.sets(step_ids),
    keep_last=st.integers(1, 4),
)
def test_a_marked_checkpoint_never_goes_and_never_counts(committed, partial, marked, keep_last):
    """
    What is marked stays, whole or not. Of the others as many stay as if the marked ones were not there.
    """
    in_order = sorted(committed, reverse=True)

    removed = removable(in_order, committed | partial, keep_last=keep_last, keep_every=None, marked=marked)

    assert marked.isdisjoint(removed)
    counted = [step_id for step_id in in_order if step_id not in marked]
    assert set(counted[:keep_last]).isdisjoint(removed)
    last_attempt = max((step_id.attempt for step_id in committed), default=0)
    of_last = [step_id for step_id in counted if step_id.attempt == last_attempt]
    assert set(removed) & committed == set(counted) - {*counted[:keep_last], *of_last[:keep_last]}


def test_a_listing_that_fails_removes_nothing():
    """
    If the marks cannot be listed, nobody knows what is kept, so everything stays.
    """

    class Blind(MemoryStore):
        def keys(self, prefix):
            if prefix.startswith("keep/"):
                raise StoreError("list", prefix, "the service is busy")
            return super().keys(prefix)

    store = Blind()
    claim_attempt(store, b"")
    for step in (1, 2, 3):
        save(step, store, keep_last=9)

    with pytest.raises(StoreError):
        prune(store, 1, keep_last=1, keep_every=None)

    assert numbers(store) == [3, 2, 1]


def test_a_step_whose_mark_is_still_to_be_put_stays():
    """
    The store has not taken the mark yet; the process that is to put it prunes nothing of that step.
    """
    store = MemoryStore()
    claim_attempt(store, b"")
    for step in (1, 2, 3):
        save(step, store, keep_last=9)

    assert prune(store, 1, keep_last=1, keep_every=None, protected={1}) == ids(2)
    assert prune(store, 1, keep_last=1, keep_every=None) == ids(1)


class Stopping(MemoryStore):
    """Refuses deletes after some."""

    num_deletes = 0

    def delete(self, key):
        if self.num_deletes == 0:
            raise StoreError("delete", key, "the service is busy")
        self.num_deletes -= 1
        super().delete(key)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_pruning_that_stops_anywhere_leaves_only_whole_checkpoints(world_size):
    """
    After any number of deletes every step that a reader sees has all its blobs; the next pruning takes the rest.
    """
    for num_deletes in range(100):
        store = Stopping()
        claim_attempt(store, b"")
        for step in (1, 2, 3):
            for rank in range(world_size):
                save(step, store, rank=rank, world_size=world_size, keep_last=9)
        store.num_deletes = num_deletes
        try:
            removed = prune(store, 1, keep_last=1, keep_every=None)
        except StoreError:
            assert_whole(store)
            assert 3 in numbers(store)
            store.num_deletes = 99
            prune(store, 1, keep_last=1, keep_every=None)
        else:
            assert removed == ids(1, 2)
            break
        assert numbers(store) == [3]
        assert all(key.startswith(StepId(3, 1).prefix) for key in store.keys("steps/"))
        assert [loaded.step_id.step for loaded in load_on_all(store, world_size)] == [3] * world_size
    assert num_deletes > 3


def test_an_older_attempt_removes_nothing():
    """
    A process that was taken for dead and comes back must not remove what the newer one relies on.
    """
    store = MemoryStore()
    old = claim_attempt(store, b"old")
    for step in (1, 2):
        save(step, store, attempt=old)
    claim_attempt(store, b"new")
    before = list(store.keys(""))

    with pytest.raises(SupersededError):
        prune(store, old, keep_last=1, keep_every=None)

    assert list(store.keys("")) == before
    assert len(committed_steps(store)) == 2
