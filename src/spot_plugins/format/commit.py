"""
How a step becomes visible, and how a new process life fences off the old one.

There is no leader and no collective: each rank puts its own manifest after its blobs. A checkpoint is
committed when the manifests of all ranks it names exist, whoever wrote the last one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ..store import ObjectStore
from .attempts import check_newest
from .keys import (
    STEPS_PREFIX,
    StepId,
    merged_manifest_key,
    parse_rank_manifest_key,
    rank_manifest_key,
)
from .manifest import RankManifest, encode_merged

logger = logging.getLogger(__name__)

NUM_GETS: Final = 8  # gets in flight


@dataclass(frozen=True, slots=True)
class CommittedStep:
    """A checkpoint that a reader may use."""

    step_id: StepId
    world_size: int
    """How many ranks wrote it; their manifests all exist."""


@dataclass(frozen=True, slots=True)
class StoredManifests:
    """What there is of a checkpoint."""

    step_id: StepId
    world_size: int
    """How many ranks write it."""
    ranks: set[int]
    """Those whose manifests are there."""

    @property
    def is_whole(self) -> bool:
        """Whether it is committed."""
        # No set of all ranks: a name alone may say any number.
        return len(self.ranks) == self.world_size > max(self.ranks)


def commit(manifest: RankManifest, store: ObjectStore) -> None:
    """
    Make this rank's part of a step visible. No rank waits for another here.

    1. every rank: refuse if a newer attempt has claimed the run;
    2. every rank: put its manifest, after all blobs that it names.

    The step becomes visible with the put that makes the set of manifests complete, whichever rank does
    it; that put is the commit point.

    Raises:
        SupersededError: A newer attempt runs; nothing was written.
        StoreError: The put failed. That is "unknown", not "no": the step may yet be visible, and if it
            is, it is whole.
    """
    check_newest(store, manifest.step_id.attempt)
    store.put(rank_manifest_key(manifest.step_id, manifest.rank, manifest.world_size), manifest.encode())


def stored_manifests(store: ObjectStore) -> list[StoredManifests]:
    """Return whose manifests there are of each checkpoint, committed or not, in no order."""
    ranks: defaultdict[tuple[StepId, int], set[int]] = defaultdict(set)
    for key in store.keys(STEPS_PREFIX):
        if (found := parse_rank_manifest_key(key)) is not None:
            ranks[found.step_id, found.world_size].add(found.rank)
    return [StoredManifests(step_id, world_size, present) for (step_id, world_size), present in ranks.items()]


def committed_steps(store: ObjectStore) -> list[CommittedStep]:
    """Return all committed checkpoints, the newest first: the higher step, then the later attempt."""
    whole = [CommittedStep(parts.step_id, parts.world_size) for parts in stored_manifests(store) if parts.is_whole]
    return sorted(whole, key=lambda step: step.step_id, reverse=True)


def merge_manifests(store: ObjectStore, step_id: StepId, world_size: int) -> bool:
    """
    Add a copy of all manifests to a committed checkpoint, in one object. Only rank 0 does.

    It decides nothing: it spares each of *world_size* readers as many requests.

    Returns:
        Whether all manifests were there, and the copy is.

    Raises:
        SupersededError: A newer attempt runs; nothing was written.
        StoreError, ManifestError: There is no copy. Nothing depends on it.
    """
    check_newest(store, step_id.attempt)
    keys = [rank_manifest_key(step_id, rank, world_size) for rank in range(world_size)]
    if not set(keys).issubset(store.keys(step_id.prefix)):
        return False
    with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-merge") as pool:
        manifests = [RankManifest.decode(data) for data in pool.map(store.get, keys)]
    store.put(merged_manifest_key(step_id), encode_merged(manifests))
    return True
