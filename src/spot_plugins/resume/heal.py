"""The repair of a damaged step in the store, from the local copies of the machines of a job."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any, cast

from ..errors import StoreError
from ..format.commit import CommittedStep
from ..format.keys import rank_manifest_key
from ..format.manifest import MAX_MANIFEST_BYTES, NewerFormatError, RankManifest
from ..ranks import Job
from ..store import ObjectStore, get_at_most, get_first, patiently
from .salvage import Share, again, claim_of, manifests_in, problem_of, warn_of

logger = logging.getLogger(__name__)


def heal(
    store: ObjectStore, local: ObjectStore | None, job: Job, attempt: int, committed: CommittedStep, name: str
) -> bool:
    """
    Put the objects of a damaged step to the store again, as far as local disks have them intact. Every rank calls this.

    Only copies of this run count, by the claim of their attempt. A manifest that is intact in the store is not
    replaced by another one.

    Args:
        store: The store of the run.
        local: The local copies, or None.
        job: The ranks of the job.
        attempt: The attempt of this job. Nothing is written after it is superseded.
        committed: The step.
        name: A name for this call, which no other call has.

    Returns:
        Whether any rank has put something, so that the step may be intact now.
    """
    held: list[int] = []
    if local is not None:
        try:
            held = _held(store, local, committed)
        except StoreError as error:
            warn_of("step %s cannot be repaired from the local disk: %s", error, committed.step_id.step)
    found = cast("list[list[int]]", job.exchange(f"{name}/held", cast("Any", held)))
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for rank, owners in enumerate(found):
        for owner in owners:
            holders[owner].append(rank)
    share = Share(
        store,
        local,
        committed.step_id,
        owners=[owner for owner, having in holders.items() if job.rank == (owner if owner in having else min(having))],
        world_size=committed.world_size,
        by_attempt=attempt,
        repairs=True,
    )
    tasks = (share.open, share.put_blobs, share.put_manifests)
    problem = next((problem for task in tasks if (problem := problem_of(task)) is not None), None)
    if problem is not None:
        logger.warning("step %s cannot be repaired from the local disk: %s", committed.step_id.step, problem)
    return bool(holders) and None in job.exchange(f"{name}/healed", problem)


def _held(store: ObjectStore, local: ObjectStore, committed: CommittedStep) -> list[int]:
    """Return the ranks whose manifests of the step are in *local*, belong to this run, and may be put to *store*."""
    step_id, world_size = committed.step_id, committed.world_size
    known = claim_of(store, step_id.attempt)
    return [
        rank
        for step, attempt, rank, claim in manifests_in(local, world_size)
        if (step, attempt) == step_id and claim is not None and claim == known
        if _is_same_or_damaged(store, local, rank_manifest_key(committed.step_id, rank, world_size))
    ]


def _is_same_or_damaged(store: ObjectStore, local: ObjectStore, key: str) -> bool:
    try:
        stored = patiently(lambda: get_at_most(store, key, MAX_MANIFEST_BYTES))
        if stored == again(lambda: get_first(local, key, len(stored) + 1)):
            return True
        RankManifest.decode(stored)
    except NewerFormatError:
        return False
    except (KeyError, ValueError):
        return True
    return False
