"""The manifest of an attempt that was superseded between its last check and its put."""

from __future__ import annotations

from steps import assert_whole, numbers, save

from spot_plugins.events import Committed, SaveAbandoned, Superseded
from spot_plugins.format.attempts import claim_attempt
from spot_plugins.format.keys import StepId, rank_manifest_key
from spot_plugins.store import MemoryStore

LATE = StepId(2, 1)
MANIFEST = rank_manifest_key(LATE, 0, 1)


class Overtaken(MemoryStore):
    """Before the manifest of step 2 arrives, attempt 2 commits step 3 and prunes."""

    is_over = False

    def put(self, key, data):
        if key == MANIFEST and not self.is_over:
            self.is_over = True
            claim_attempt(self, b"")
            save(3, self, attempt=2)
        super().put(key, data)


def test_a_manifest_that_arrives_after_its_blobs_were_pruned_is_taken_back():
    """
    Nobody sees a step without blobs, and the attempt says that it was superseded, not that it has committed.
    """
    store = Overtaken()
    claim_attempt(store, b"")
    told = save(2, store)

    assert numbers(store) == [3]
    assert_whole(store)
    assert [type(event) for event in told] == [Superseded, SaveAbandoned]


class Pruned(MemoryStore):
    """The late manifest arrives while the blobs of its step are removed."""

    manifest = b""

    def delete(self, key):
        super().delete(key)
        if key.startswith(LATE.prefix) and self.manifest:
            self.manifest, data = b"", self.manifest
            self.put(MANIFEST, data)


def test_a_manifest_that_arrives_while_its_blobs_are_pruned_is_removed():
    """
    The attempt that prunes looks again, because the writer may have seen the blobs just before they went.
    """
    store = Pruned()
    claim_attempt(store, b"")
    save(2, store)
    manifest = store.get(MANIFEST)
    store.delete(MANIFEST)
    store.manifest = manifest
    claim_attempt(store, b"")
    save(3, store, attempt=2)

    assert numbers(store) == [3]
    assert not list(store.keys(LATE.prefix))


class Claimed(MemoryStore):
    """A newer attempt is claimed before the manifest of step 2 arrives, and has pruned nothing yet."""

    def put(self, key, data):
        if key == MANIFEST:
            claim_attempt(self, b"")
        super().put(key, data)


def test_a_step_that_is_whole_stays_though_a_newer_attempt_has_begun():
    """
    The newer attempt may be resuming from it: a committed step is never lost.
    """
    store = Claimed()
    claim_attempt(store, b"")
    told = save(2, store)

    assert numbers(store) == [2]
    assert_whole(store)
    assert isinstance(told[0], Committed)
