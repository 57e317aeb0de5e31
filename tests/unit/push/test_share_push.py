"""
The share of a rank that has ended, stored by another rank: only what that rank has named by its hash, or nothing.

All ranks are in this process. Each has a copy of the state, a saver and a push of its own. What rank 2 had put when it
ended is chosen by the test: it is copied from a store in which rank 2 has put everything.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from fnmatch import fnmatch
from itertools import combinations

import pytest
import torch
from last_saves import LOST, STEP_ID, WORLD, Rank, state_of_rank
from steps import assert_same, assert_whole, load, numbers

from spot_plugins.errors import StoreError
from spot_plugins.events import Committed, ShareFinished, ShareNotFinished
from spot_plugins.format import retention
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.boxes import Box, ShardBoxes
from spot_plugins.format.commit import merge_manifests, shares_of
from spot_plugins.format.keys import (
    STEPS_PREFIX,
    StepId,
    parse_rank_manifest_key,
    prepared_manifest_key,
    rank_manifest_key,
)
from spot_plugins.format.manifest import RankManifest
from spot_plugins.push import step_push
from spot_plugins.save import layout as layouts
from spot_plugins.save.buffers import ROOM_BYTES
from spot_plugins.state.live_tensor import Changes
from spot_plugins.state.part import ShardedPart
from spot_plugins.state.shard import Shard
from spot_plugins.store import MemoryStore

MANIFEST = rank_manifest_key(STEP_ID, LOST, WORLD)
PREPARED = prepared_manifest_key(STEP_ID, LOST, WORLD)


@pytest.fixture(autouse=True)
def small_blobs(monkeypatch):
    """Some blobs of each kind, though the state is small."""
    monkeypatch.setattr(layouts, "MAX_BLOB_BYTES", 600)


@pytest.fixture
def ranks():
    """Return a function that makes a rank, which is closed after the test."""
    made = []

    def make(*args, **kwargs):
        made.append(Rank(*args, **kwargs))
        return made[-1]

    yield make
    for rank in made:
        rank.close()


@pytest.fixture
def lost(ranks):
    """A store in which rank 2 has stored everything, as it would have."""
    store = MemoryStore()
    ranks(LOST, store).save_last()
    return store


@pytest.fixture
def store(ranks, lost):
    """The store of the run after rank 2 has ended: it had put its own blobs and its prepared manifest."""
    store = MemoryStore()
    claim_attempt(store, b"")
    for key in own_keys(lost):
        store.put(key, lost.get(key))
    return store


@pytest.fixture
def survivor(ranks, store):
    """Rank 0, whose share is stored, as is that of rank 1."""
    ranks(1, store).save_last()
    return ranks(0, store).save_last()


def own_keys(lost):
    """The keys of what rank 2 puts first, its prepared manifest last."""
    own = [blob["key"] for blob in manifest(lost)["blobs"]]
    shared = {own[piece["blob"]] for piece in manifest(lost)["tensors"] if piece["shared"]}
    return [*(key for key in own if key not in shared), PREPARED]


def shared_keys(lost):
    return [blob["key"] for blob in manifest(lost)["blobs"] if blob["key"] not in own_keys(lost)]


def manifest(store):
    return json.loads(store.get(MANIFEST))


def content(store):
    return {key: store.get(key) for key in store.keys("")}


def assert_refused(survivor, text):
    """Fail unless the share is refused because of *text*, and nothing is put."""
    before = content(survivor.store)
    told = survivor.store_share()
    assert isinstance(told, ShareNotFinished)
    assert (told.step, told.rank) == (5, LOST)
    assert text in told.reason
    assert content(survivor.store) == before


def test_a_survivor_stores_the_very_bytes_of_the_lost_rank(survivor, lost, store):
    """
    Each object is that of the lost rank, byte for byte. So the step is committed, and each rank gets its state back.
    """
    assert numbers(store) == []
    told = survivor.store_share()

    assert isinstance(told, ShareFinished)
    assert told.num_bytes == sum(len(store.get(key)) for key in shared_keys(lost))
    assert (told.step, told.rank) == (5, LOST)
    assert {key: data for key, data in content(store).items() if key in content(lost)} == content(lost)
    assert numbers(store) == [5]
    assert_whole(store)
    assert len(shared_keys(lost)) > 1
    assert len(own_keys(lost)) > 2


def test_any_survivor_can_store_the_share_of_any_lost_rank(ranks):
    """One after the other, and each share by another rank than the one before."""
    whole, store = MemoryStore(), MemoryStore()
    claim_attempt(store, b"")
    for rank in range(WORLD):
        ranks(rank, whole).save_last()
    alone = ranks(1, store).save_last()
    for rank in (0, 2):
        prepared = json.loads(whole.get(prepared_manifest_key(STEP_ID, rank, WORLD)))
        shared = {piece["blob"] for piece in prepared["tensors"] if piece["shared"]}
        for index, blob in enumerate(prepared["blobs"]):
            if index not in shared:
                store.put(blob["key"], whole.get(blob["key"]))
        key = prepared_manifest_key(STEP_ID, rank, WORLD)
        store.put(key, whole.get(key))
        assert isinstance(alone.store_share(rank), ShareFinished)

    assert {key: store.get(key) for key in whole.keys("")} == content(whole)
    assert numbers(store) == [5]
    assert_same(load(store).state["part"], state_of_rank(0))


@pytest.mark.parametrize("stored", range(3))
def test_it_does_not_matter_which_shared_blobs_the_lost_rank_had_put(stored, survivor, lost, store):
    """An object of that name may also be that of an abandoned save, so each is put again."""
    keys = shared_keys(lost)
    for missing in combinations(keys, min(stored, len(keys))):
        store.delete(MANIFEST)
        for key in keys:
            store.put(key, b"of an abandoned save" if key in missing else lost.get(key))
        assert isinstance(survivor.store_share(), ShareFinished)
        assert {key: store.get(key) for key in lost.keys("")} == content(lost)


def test_both_may_write_in_any_order(survivor, ranks, lost, store):
    """The lost rank was only slow, or its pusher process lives. Its bytes are the same."""
    survivor.store_share()
    before = content(store)
    late = ranks(LOST, store).save_last()
    assert isinstance(late.pusher.told[-1], Committed)
    assert content(store) == before

    store.delete(MANIFEST)
    survivor.store_share()
    assert content(store) == before
    told = survivor.store_share()
    assert (told.num_bytes, content(store)) == (0, before), "a share that is stored is not put again"


@pytest.mark.parametrize("missing", ["prepared manifest", "own blob"])
def test_what_no_survivor_can_know_must_be_stored(missing, survivor, lost, store):
    """The lost rank had not come so far, or somebody has removed it."""
    own, *_, prepared = own_keys(lost)
    store.delete(prepared if missing == "prepared manifest" else own)
    said = "its prepared manifest is not stored" if missing == "prepared manifest" else f"{own} is gone"
    assert_refused(survivor, said)


@pytest.mark.parametrize("size", ["shorter", "same", "longer"])
def test_a_blob_of_the_lost_ranks_own_is_verified(size, survivor, lost, store):
    own = own_keys(lost)[0]
    data = bytearray(store.get(own))
    data[-1] ^= 1
    store.put(own, bytes({"shorter": data[:-1], "same": data, "longer": data + b"0"}[size]))
    assert_refused(survivor, own)


@pytest.mark.parametrize("name", ["weight", "steps"])  # the last rows of one are in the share, and all of the other
def test_a_rank_whose_state_differs_by_one_bit_stores_nothing(name, ranks, lost, store):
    """The ranks have drifted apart. Which of them is right nobody knows."""
    state = state_of_rank(0)
    state["both"][name].view(-1).view(torch.uint8)[-1] ^= 1
    drifted = ranks(0, store, state).save_last()
    assert_refused(drifted, "has other content on this rank: the ranks do not hold the same state")


@pytest.mark.parametrize("shape", [(91, 5), (90, 4)])
def test_a_rank_whose_state_has_another_shape_stores_nothing(shape, ranks, lost, store):
    state = state_of_rank(0)
    state["both"]["weight"] = torch.zeros(shape)
    assert_refused(ranks(0, store, state).save_last(), "on this rank")


def test_a_rank_that_has_more_shared_tensors_stores_nothing(ranks, lost, store):
    state = state_of_rank(0)
    state["both"]["more"] = torch.zeros(2000)
    assert_refused(ranks(0, store, state).save_last(), "")


def test_a_rank_that_has_fewer_shared_tensors_stores_nothing(ranks, lost, store):
    state = state_of_rank(0)
    del state["both"]["bias"]
    assert_refused(ranks(0, store, state).save_last(), "")


def test_a_rank_that_has_none_of_the_shared_tensors_stores_nothing(survivor, lost, store):
    """Even if all blobs are there. A rank that holds another state cannot say that they are right."""
    for key in shared_keys(lost):
        store.put(key, lost.get(key))
    survivor.staged = replace(survivor.staged, shared={})
    assert_refused(survivor, "has other content on this rank")


def test_a_rank_that_has_more_blobs_than_are_named_stores_nothing(survivor, lost, store):
    whole = RankManifest.decode(store.get(PREPARED))
    first = tuple(piece for piece in whole.tensors if piece.blob == 0)
    store.put(PREPARED, replace(whole, blobs=whole.blobs[:1], tensors=first).encode())
    assert_refused(survivor, "has other content on this rank")


def other(document, **fields):
    """Return *document* as JSON with other *fields*, and without its hash, which no longer fits."""
    return json.dumps({**{k: v for k, v in document.items() if k != "xxh3_128"}, **fields}).encode()


@pytest.mark.parametrize("damage", ["cut off", "another rank", "another step", "another form", "no hash", "nothing"])
def test_a_prepared_manifest_must_be_what_the_lost_rank_would_commit(damage, ranks, survivor, lost, store):
    """The bytes become its manifest, so they are those of a manifest, of that rank and step, in the very form."""
    data = store.get(PREPARED)
    document = json.loads(data)
    bad = {
        "cut off": data[:-10],
        "another rank": store.get(prepared_manifest_key(STEP_ID, 1, WORLD)),
        "another step": data.replace(b'"step":5', b'"step":6'),
        "another form": json.dumps(document, indent=1).encode(),
        "no hash": other(document),
        "nothing": b"",
    }
    store.put(PREPARED, bad[damage])
    said = "the prepared manifest is not in the form in which it would be stored" if damage == "another form" else ""
    assert_refused(survivor, said)


def test_a_newer_attempt_is_left_alone(survivor, store):
    """It has resumed from the step before, and may have removed what is there of this one."""
    claim_attempt(store, b"")
    assert_refused(survivor, "attempt")


class Claimed(MemoryStore):
    """A newer attempt is claimed when the blob *at* is put."""

    at = ""

    def put(self, key, data):
        if key == self.at:
            claim_attempt(self, b"")
        super().put(key, data)


def test_a_newer_attempt_that_is_claimed_meanwhile_gets_no_manifest(ranks, lost):
    store = Claimed()
    claim_attempt(store, b"")
    for key in own_keys(lost):
        store.put(key, lost.get(key))
    survivor = ranks(0, store).save_last()
    store.at = shared_keys(lost)[0]
    assert isinstance(survivor.store_share(), ShareNotFinished)
    assert MANIFEST not in store.keys(MANIFEST)


def test_a_step_that_a_newer_attempt_prunes_meanwhile_is_taken_back(ranks, lost):
    """The manifest is put just after the newer attempt has removed the blobs."""

    class Pruned(MemoryStore):
        is_on = False

        def put(self, key, data):
            if key == MANIFEST and self.is_on:
                claim_attempt(self, b"")
                for each in list(self.keys(STEP_ID.prefix)):
                    self.delete(each)
            super().put(key, data)

    store = Pruned()
    claim_attempt(store, b"")
    for key in own_keys(lost):
        store.put(key, lost.get(key))
    survivor = ranks(0, store).save_last()
    store.is_on = True
    survivor.store_share()
    assert not list(store.keys(STEPS_PREFIX))


class Recording(MemoryStore):
    """Remembers the order of the puts. The prepared manifest waits until *holds* is set."""

    def __init__(self):
        super().__init__()
        self.order = []
        self.shared_are_put = threading.Event()
        self.num_left = 0

    def put(self, key, data):
        if key == PREPARED and self.num_left:
            assert self.shared_are_put.wait(60), "the shared blobs wait for the prepared manifest"
        super().put(key, data)
        self.order.append(key)
        if key in self.waited_for:
            self.num_left -= 1
            if self.num_left == 0:
                self.shared_are_put.set()

    waited_for = ()


def test_own_blobs_come_before_the_prepared_manifest_and_no_shared_blob_waits_for_it(ranks, lost):
    store = Recording()
    store.waited_for = shared_keys(lost)
    store.num_left = len(store.waited_for)
    ranks(LOST, store).save_last()
    *own, prepared = own_keys(lost)
    assert max(map(store.order.index, own)) < store.order.index(prepared) < store.order.index(MANIFEST)
    assert store.get(PREPARED) == store.get(MANIFEST)


class Forgetful(Recording):
    """Refuses each blob of the rank's own once."""

    own = ()

    def put(self, key, data):
        if key in self.own:
            self.own.remove(key)
            raise StoreError("put", key, "it is refused once")
        super().put(key, data)


def test_no_prepared_manifest_is_put_before_the_own_blobs_are_stored(ranks, lost, monkeypatch):
    """It says to the others that these are there."""
    monkeypatch.setattr(step_push, "FIRST_PAUSE_S", 0.01)
    store = Forgetful()
    *own, prepared = own_keys(lost)
    store.own = [*own]
    told = ranks(LOST, store).save_last().pusher.told
    assert isinstance(told[-1], Committed)
    assert max(map(store.order.index, own)) < store.order.index(prepared)


def test_the_last_save_is_never_refused_because_of_its_own_blobs_apart(ranks):
    """They take some bytes more. If the user's limit has no room for these, nobody else can store the share."""
    mixed = ranks(LOST, MemoryStore())
    num_bytes = mixed.saver.stage(5, "pause", 0.0).blobs[0].layout.num_bytes
    last = ranks(LOST, MemoryStore(), max_bytes=num_bytes + ROOM_BYTES).save_last()
    assert isinstance(last.pusher.told[-1], Committed)
    assert not last.staged.can_be_finished
    assert PREPARED not in content(last.store)


def test_an_attempt_that_is_superseded_prepares_nothing(ranks):
    store = MemoryStore()
    claim_attempt(store, b"")
    claim_attempt(store, b"")
    rank = ranks(LOST, store).save_last()
    assert rank.staged.can_be_finished
    assert not [key for key in content(store) if key.startswith(STEPS_PREFIX) and key.endswith(".json")]


class Refusing(MemoryStore):
    def put(self, key, data):
        if key == PREPARED:
            raise StoreError("put", key, "it is refused")
        super().put(key, data)


def test_a_store_that_refuses_the_prepared_manifest_gets_the_step_all_the_same(ranks):
    store = Refusing()
    told = ranks(LOST, store).save_last().pusher.told
    assert [type(each) for each in told] == [Committed]


def test_other_saves_are_what_they_were(ranks):
    """Only the last save of a departure has own blobs apart and a prepared manifest."""
    store, before = MemoryStore(), MemoryStore()
    rank = ranks(LOST, store)
    rank.saver.save(5, "notice", time.monotonic() + 60)
    ordinary = ranks(LOST, before)
    ordinary.saver.push(ordinary.saver.stage(5, "pause", 0.0))
    assert content(store) == content(before)
    assert PREPARED not in content(store)
    mixed = [{piece["shared"] for piece in manifest(store)["tensors"] if piece["blob"] == index} for index in range(9)]
    assert {True, False} in mixed


class SpreadPart(ShardedPart):
    """A tensor of which each rank holds some rows."""

    replicated = ("w",)

    def __init__(self, rank, holders=None):
        first, rows = (0, 30) if holders == (1, 2) else (10 * rank, 10)
        self.boxes = ShardBoxes((30, 4), (Box((first, 0), (rows, 4)),), holders or (rank,))

    def state_dict(self):
        return {"w": Shard(torch.zeros(self.boxes.held[0].lengths), self.boxes)}

    def load_state_dict(self, state):
        raise AssertionError


@pytest.mark.parametrize("kind", ["spread", "held by some", "held in part", "one rank", "nothing shared"])
def test_nothing_changes_where_no_other_rank_holds_the_share(kind, ranks):
    """The objects are those of any other save."""
    kwargs = {
        "spread": {"part": SpreadPart(LOST)},
        "held by some": {"part": SpreadPart(LOST, (1, 2))},
        "held in part": {"part": SpreadPart(LOST, (0, 1, 2))},
        "one rank": {"world_size": 1},
        "nothing shared": {"replicated": ()},
    }[kind]
    rank = 0 if kind == "one rank" else LOST
    last, other_store = ranks(rank, MemoryStore(), **kwargs).save_last(), MemoryStore()
    ordinary = ranks(rank, other_store, **kwargs)
    ordinary.saver.push(ordinary.saver.stage(5, "pause", 0.0))
    assert content(last.store) == content(other_store)
    assert not last.staged.can_be_finished


def test_no_reader_takes_the_prepared_manifest_for_a_manifest(store, lost):
    """The step is not committed, and pruning counts its objects as those of a step that never will be."""
    assert parse_rank_manifest_key(PREPARED) is None
    assert not fnmatch(PREPARED.rpartition("/")[2], "rank-*.json"), "which docs/format.md looks for"
    assert shares_of(store, STEP_ID, WORLD) == (set(), {LOST})
    assert numbers(store) == []
    assert not merge_manifests(store, STEP_ID, WORLD)
    manifests, others = retention.removal_groups([*store.keys(STEP_ID.prefix), MANIFEST])
    assert (manifests, PREPARED in others) == ([MANIFEST], True)


def test_pruning_removes_the_prepared_manifests_of_a_step(survivor, store):
    survivor.store_share()
    assert merge_manifests(store, STEP_ID, WORLD)
    for step in (6, 7):
        for rank in range(WORLD):
            store.put(rank_manifest_key(StepId(step, 1), rank, WORLD), b"")
    assert retention.prune(store, 1, keep_last=2, keep_every=None) == [STEP_ID]
    assert not list(store.keys(STEP_ID.prefix))


class FrozenPart(ShardedPart):
    """A part with a tensor that never changes, which all ranks hold."""

    replicated = ("both", "base")

    def __init__(self, rank):
        self.state = state_of_rank(rank) | {"base": {"w": torch.arange(300.0)}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        raise AssertionError

    def changes(self, path, tensor, known):
        return Changes.NEVER if path[0] == "base" else Changes.ANYTIME


def test_frozen_blobs_must_be_in_the_store(ranks):
    """As in every save. They have names of their content, and no survivor puts them."""
    whole, store = MemoryStore(), MemoryStore()
    claim_attempt(store, b"")
    ranks(LOST, whole, part=FrozenPart(LOST)).save_last()
    named = [blob["key"] for blob in manifest(whole)["blobs"]]
    shared = {named[piece["blob"]] for piece in manifest(whole)["tensors"] if piece["shared"]}
    frozen = [key for key in named if key.startswith("frozen/")]
    assert frozen
    for key in {*named} - shared | {PREPARED}:
        store.put(key, whole.get(key))
    survivor = ranks(0, store, part=FrozenPart(0)).save_last()
    for key in frozen:
        store.delete(key) if key in store.keys(key) else None

    assert_refused(survivor, "is gone")
    for key in frozen:
        store.put(key, whole.get(key))
    assert isinstance(survivor.store_share(), ShareFinished)
    assert store.get(MANIFEST) == whole.get(MANIFEST)


def test_frozen_weights_that_change_are_stored_by_nobody_else(ranks):
    """They are stored as those of the step then, in a layout that mixes shared and own tensors."""
    part = FrozenPart(LOST)
    rank = ranks(LOST, MemoryStore(), part=part)
    rank.saver.push(rank.saver.stage(4, "pause", time.monotonic() + 60))
    part.state["base"]["w"] += 1
    rank.save_last()
    assert not rank.staged.can_be_finished
    assert PREPARED not in content(rank.store)
