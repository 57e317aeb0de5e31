"""The manifests of a committed step, read without believing anything of them. No torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from ..errors import GONE, CorruptCheckpointError, IncompatibleCheckpointError, StoreError
from ..format.commit import NUM_GETS, CommittedStep, read_manifest
from ..format.keys import merged_manifest_key, rank_manifest_key
from ..format.manifest import MAX_MANIFEST_BYTES, ManifestError, NewerFormatError, RankManifest, decode_merged
from ..store import ObjectStore, get_at_most, patiently


def manifest_of(store: ObjectStore, committed: CommittedStep, rank: int) -> RankManifest:
    """
    Return the manifest of one rank.

    Raises:
        CorruptCheckpointError: It is missing or damaged.
        IncompatibleCheckpointError: Newer software wrote it.
        StoreError: The store does not answer.
    """
    step_id, world_size = committed.step_id, committed.world_size
    key = rank_manifest_key(step_id, rank, world_size)
    try:
        return patiently(lambda: read_manifest(store, step_id, rank, world_size))
    except KeyError:
        raise CorruptCheckpointError(step_id.step, key, GONE) from None
    except NewerFormatError as error:
        raise IncompatibleCheckpointError(step_id.step, str(error)) from error
    except ManifestError as error:
        raise CorruptCheckpointError(step_id.step, key, f"is damaged: {error}") from error


def manifests_of(store: ObjectStore, committed: CommittedStep, own: RankManifest | None = None) -> list[RankManifest]:
    """
    Return the manifests of all ranks, in their order. They come from the merged copy if that is intact.

    A copy that is intact may still contradict the manifest of a rank. See :func:`single_manifests_of`.

    Args:
        store: The store of the run.
        committed: The step.
        own: A manifest that was read from its own object. A merged copy that has another one for this rank is not used.

    Raises:
        CorruptCheckpointError, IncompatibleCheckpointError, StoreError: As for :func:`manifest_of`.
    """
    step_id, world_size = committed.step_id, committed.world_size
    with suppress(KeyError, StoreError, ValueError):
        merged = decode_merged(get_at_most(store, merged_manifest_key(step_id), MAX_MANIFEST_BYTES))
        names = [(each.step_id, each.rank, each.world_size) for each in merged]
        is_copy = names == [(step_id, rank, world_size) for rank in range(world_size)]
        if is_copy and (own is None or merged[own.rank] == own):
            return merged
    return single_manifests_of(store, committed)


def single_manifests_of(store: ObjectStore, committed: CommittedStep) -> list[RankManifest]:
    """Return the manifests of all ranks, each from its own object. Raises as :func:`manifest_of`."""
    with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
        return list(pool.map(partial(manifest_of, store, committed), range(committed.world_size)))
