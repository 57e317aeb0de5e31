"""
The commit of a step, and the list of committed steps.

Each rank puts its blobs and then its manifest. No rank leads, and no rank waits for another one. A checkpoint is
committed once the manifest of every rank exists. The file names say how many ranks there are.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..errors import SupersededError
from ..store import ObjectStore, get_at_most
from .attempts import check_newest
from .keys import (
    STEPS_PREFIX,
    StepId,
    merged_manifest_key,
    parse_prepared_manifest_key,
    parse_rank_manifest_key,
    prepared_manifest_key,
    rank_manifest_key,
)
from .manifest import MAX_MANIFEST_BYTES, ManifestError, RankManifest

logger = logging.getLogger(__name__)

NUM_GETS: Final = 8  # concurrent requests


@dataclass(frozen=True, slots=True)
class CommittedStep:
    """A checkpoint that a reader may use."""

    step_id: StepId
    world_size: int
    """Number of ranks. The manifest of each one exists."""


@dataclass(frozen=True, slots=True)
class StoredManifests:
    """The manifests of a checkpoint that are stored, committed or not."""

    step_id: StepId
    world_size: int
    """Number of ranks, as the names of the manifests give it."""
    ranks: set[int]
    """The ranks whose manifests are stored."""

    @property
    def is_committed(self) -> bool:
        """True if the manifest of every rank is stored."""
        # Not set(range(world_size)), because a forged name can give any number of ranks.
        return len(self.ranks) == self.world_size > max(self.ranks)


class Shares(NamedTuple):
    """The ranks of a checkpoint, by what they have put."""

    stored: set[int]
    """The ranks whose manifests are stored."""
    prepared: set[int]
    """The ranks whose prepared manifests are stored."""


def commit(manifest: RankManifest, store: ObjectStore) -> None:
    """
    Put the manifest of this rank, after checking that no newer attempt has claimed the run.

    Every rank calls this after it has put all blobs that its manifest names. No rank waits for another one. The put
    that completes the set of manifests makes the step visible, on whichever rank it happens. This put is the commit
    point.

    Raises:
        SupersededError: A newer attempt runs. Nothing was written.
        StoreError: The put failed. The manifest may be stored nevertheless, for example if only the answer got lost.
            Then the step may become visible, and it is complete if it does.
    """
    check_newest(store, manifest.step_id.attempt)
    store.put(rank_manifest_key(manifest.step_id, manifest.rank, manifest.world_size), manifest.encode())


def withdraw_if_pruned(manifest: RankManifest, store: ObjectStore) -> None:
    """
    Remove the manifest of this rank again, if a newer attempt has removed blobs that it names.

    Every rank calls this after :func:`commit`. A newer attempt may have started between the check and the put of the
    manifest, and may have taken the blobs for those of a step that will never be committed. A manifest whose blobs are
    all there stays, because the newer attempt may be resuming from this step.

    Raises:
        SupersededError: The manifest is removed.
        StoreError: The store failed.
    """
    step_id = manifest.step_id
    try:
        check_newest(store, step_id.attempt)
    except SupersededError:
        own = {blob.key for blob in manifest.blobs if blob.key.startswith(step_id.prefix)}
        if own <= set(store.keys(step_id.prefix)):
            return
        store.delete(rank_manifest_key(step_id, manifest.rank, manifest.world_size))
        raise


def stored_manifests(store: ObjectStore) -> list[StoredManifests]:
    """Return the stored manifests of each checkpoint, committed or not, in no particular order."""
    ranks: defaultdict[tuple[StepId, int], set[int]] = defaultdict(set)
    for key in store.keys(STEPS_PREFIX):
        if (found := parse_rank_manifest_key(key)) is not None:
            ranks[found.step_id, found.world_size].add(found.rank)
    return [StoredManifests(step_id, world_size, present) for (step_id, world_size), present in ranks.items()]


def committed_steps(store: ObjectStore) -> list[CommittedStep]:
    """Return all committed checkpoints, newest first. They are ordered by step, then by attempt."""
    committed = [CommittedStep(each.step_id, each.world_size) for each in stored_manifests(store) if each.is_committed]
    return sorted(committed, key=lambda step: step.step_id, reverse=True)


def read_manifest(store: ObjectStore, step_id: StepId, rank: int, world_size: int) -> RankManifest:
    """
    Read the manifest of one rank. No more bytes are read than a manifest may have.

    Raises:
        KeyError: It does not exist.
        NewerFormatError: Newer software wrote it.
        ManifestError: It is damaged, too large, or the manifest of another step or rank.
        StoreError: The store does not answer.
    """
    data = _get(store, rank_manifest_key(step_id, rank, world_size), MAX_MANIFEST_BYTES)
    return _decode(data, step_id, rank, world_size)


def read_prepared(store: ObjectStore, step_id: StepId, rank: int, world_size: int) -> RankManifest:
    """
    Read the prepared manifest of one rank, which names its blobs before they are stored.

    Raises:
        KeyError: It does not exist.
        ManifestError: It is damaged or too large, belongs to another step or rank, or has other bytes than a manifest.
        StoreError: The store does not answer.
    """
    data = _get(store, prepared_manifest_key(step_id, rank, world_size), MAX_MANIFEST_BYTES)
    manifest = _decode(data, step_id, rank, world_size)
    if manifest.encode() != data:
        raise ManifestError("the prepared manifest is not in the form in which it would be stored")
    return manifest


def shares_of(store: ObjectStore, step_id: StepId, world_size: int) -> Shares:
    """Return which ranks have stored their share of a checkpoint, or have prepared it. Raises :exc:`StoreError`."""
    stored: set[int] = set()
    prepared: set[int] = set()
    for key in store.keys(step_id.prefix):
        for parse, ranks in ((parse_rank_manifest_key, stored), (parse_prepared_manifest_key, prepared)):
            if (found := parse(key)) is not None and found.world_size == world_size > found.rank:
                ranks.add(found.rank)
    return Shares(stored, prepared)


def _get(store: ObjectStore, key: str, max_bytes: int) -> bytes:
    try:
        return get_at_most(store, key, max_bytes)
    except ValueError as error:
        raise ManifestError(str(error)) from None


def _decode(data: bytes, step_id: StepId, rank: int, world_size: int) -> RankManifest:
    manifest = RankManifest.decode(data)
    if (manifest.step_id, manifest.rank, manifest.world_size) != (step_id, rank, world_size):
        raise ManifestError("it is the manifest of another step or rank")
    return manifest


def merge_manifests(store: ObjectStore, step_id: StepId, world_size: int) -> bool:
    """
    Store a copy of all manifests of a committed checkpoint as one object. Only rank 0 calls this.

    A reader of the copy needs one request instead of *world_size*. The copy is not needed for the commit.

    Returns:
        True if the copy was stored. False if the manifest of a rank is missing.

    Raises:
        SupersededError: A newer attempt runs. Nothing was written.
        StoreError, ManifestError: The copy was not stored, for example because it would be larger than a reader
            accepts. Readers take the manifests of the single ranks.
    """
    check_newest(store, step_id.attempt)
    keys = [rank_manifest_key(step_id, rank, world_size) for rank in range(world_size)]
    sizes = {each.key: each.num_bytes for each in store.objects(step_id.prefix)}
    if not sizes.keys() >= set(keys):
        return False
    too_large = ManifestError(f"the manifests of {world_size} ranks have too many bytes for a copy")
    if sum(sizes[key] for key in keys) > MAX_MANIFEST_BYTES:  # before they are read, which could take gigabytes
        raise too_large
    merged = bytearray()
    with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-merge") as pool:
        # As many as are read at once have no more bytes than the copy. An error cancels what has not begun.
        for rank, data in enumerate(pool.map(lambda key: _get(store, key, MAX_MANIFEST_BYTES // NUM_GETS), keys)):
            merged += _decode(data, step_id, rank, world_size).encode()
            if len(merged) > MAX_MANIFEST_BYTES:
                raise too_large
    store.put(merged_manifest_key(step_id), bytes(merged))
    return True
