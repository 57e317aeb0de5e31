"""Frozen blobs that the store loses while steps name them: found, put again, and said."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from spot_plugins.events import EventBus, StoreDamaged
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import frozen_key
from spot_plugins.format.manifest import Blob, hash_of_blob
from spot_plugins.push import PushSettings
from spot_plugins.push.frozen_watch import FrozenWatch, damage_of
from spot_plugins.push.messages import SealedBlob, StoredFrozen
from spot_plugins.store import LocalStore, MemoryStore
from spot_plugins.store.base import scatter

SETTINGS = PushSettings(
    url="memory://x", storage_options={}, local_dir=None, rank=0, world_size=1, attempt=1, keep_last=1, keep_every=None
)


def blob_of(data):
    """A blob without slices, so that all of it is its header."""
    digest = hash_of_blob(data, [])
    return SealedBlob(Blob(key=frozen_key(digest), num_bytes=len(data), xxh3_128=digest), ())


DATA = {blob_of(data).blob.key: data for data in (b"first", b"second", b"third")}
SEALED = tuple(blob_of(data) for data in DATA.values())


@dataclass
class Watched:
    """A store that has three blobs, a disk that has them too, and what is told."""

    store: object = field(default_factory=MemoryStore)
    local: object = field(default_factory=MemoryStore)
    told: list = field(default_factory=list)

    def __post_init__(self):
        claim_attempt(self.store, b"")
        for key, data in DATA.items():
            self.store.put(key, data)
            self.local.put(key, data)
        self.watch = FrozenWatch(self.store, self.local, SETTINGS, EventBus(self.told.append))
        self.watch.frozen = StoredFrozen(7, SEALED)


DAMAGES = {"gone": None, "cut": lambda data: data[:-1], "longer": lambda data: data + b"x", "empty": lambda data: b""}


def do_damage(store, key, damage):
    if damage is None:
        store.delete(key)
    else:
        store.put(key, damage(store.get(key)))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("index", range(3))
def test_a_blob_that_is_not_whole_is_put_again_from_the_disk(index, damage):
    """
    At the next look, whichever blob it is. One event tells it.
    """
    watched = Watched()
    key = SEALED[index].blob.key
    do_damage(watched.store, key, damage)
    watched.watch.look()
    watched.watch.look()

    (event,) = watched.told
    assert (event.key, event.is_repaired) == (key, True)
    assert watched.store.get(key) == DATA[key]


def test_a_flipped_bit_is_found_within_as_many_looks_as_there_are_blobs():
    """
    Its size says nothing, so each look reads one blob whole, in turn.
    """
    watched = Watched()
    key = SEALED[2].blob.key
    watched.store.put(key, b"thirt")
    for _ in SEALED:
        watched.watch.look()

    assert watched.told == [StoreDamaged(key=key, reason="has changed: its hash differs", is_repaired=True)]
    assert watched.store.get(key) == DATA[key]


@pytest.mark.parametrize("copy", [None, lambda data: data[:-1] + b"x"], ids=["none", "damaged"])
def test_without_an_intact_copy_the_next_save_is_asked_for_it(copy):
    """
    The event says that it is not repaired, once.
    """
    watched = Watched()
    key = SEALED[0].blob.key
    do_damage(watched.local, key, copy)
    watched.store.delete(key)
    watched.watch.look()
    watched.watch.look()

    (event,) = watched.told
    assert (event.key, event.is_repaired) == (key, False)
    assert watched.watch.damaged == {key}


def test_whoever_hears_of_a_damage_finds_it_noted():
    """
    The trainer answers the event with a save that brings the blob, which a push puts only if the damage is noted.
    """
    watched = Watched()
    key = SEALED[0].blob.key
    noted = []
    bus = EventBus(lambda event: noted.append(set(watched.watch.damaged)))
    watched.watch = FrozenWatch(watched.store, None, SETTINGS, bus)
    watched.watch.frozen = StoredFrozen(7, SEALED)
    watched.store.delete(key)
    watched.watch.look()

    assert noted == [{key}]


def test_a_copy_that_comes_later_repairs_and_says_so():
    """
    A save has written the blob to the disk again. Nothing is damaged any more.
    """
    watched = Watched()
    key = SEALED[0].blob.key
    watched.local.delete(key)
    watched.store.delete(key)
    watched.watch.look()
    watched.local.put(key, DATA[key])
    watched.watch.look()
    watched.watch.look()

    assert [(event.key, event.is_repaired) for event in watched.told] == [(key, False), (key, True)]
    assert watched.store.get(key) == DATA[key]
    assert watched.watch.damaged == set()


def test_a_superseded_attempt_puts_nothing():
    """
    The newer one looks after the blobs.
    """
    watched = Watched()
    claim_attempt(watched.store, b"")
    key = SEALED[0].blob.key
    watched.store.delete(key)
    with pytest.raises(Exception, match="another process"):
        watched.watch.look()

    assert key not in watched.store.keys(key)


def test_a_look_costs_little():
    """
    One request of two bytes for each blob, and one blob whole.
    """
    calls = []

    class Counting(MemoryStore):
        def get(self, key):
            calls.append("whole")
            return super().get(key)

        def get_into(self, key, start, targets):
            calls.append(sum(len(target) for target in targets))
            return scatter(super().get(key)[start:], targets)

    watched = Watched(store=Counting())
    watched.watch.look()

    assert sorted(calls, key=str) == [2, 2, 2, "whole"]


def test_a_directory_tells_the_same(tmp_path):
    """
    A file in place of an object in a bucket.
    """
    store = LocalStore(str(tmp_path))
    (sealed, *_) = SEALED
    assert damage_of(store, sealed) == "is gone"
    store.put(sealed.blob.key, b"firs")
    assert damage_of(store, sealed) == "has less than 5 bytes"
    store.put(sealed.blob.key, b"first")
    assert damage_of(store, sealed) is None
    assert damage_of(store, sealed, reads_all=True) is None
