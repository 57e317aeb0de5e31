"""Retention: removal of old checkpoints, in an order that never shows half a checkpoint to a reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..store import ObjectStore
from .attempts import check_newest
from .commit import committed_steps
from .kept import kept_ids
from .keys import STEPS_PREFIX, StepId, parse_rank_manifest_key, parse_step_id

NUM_DELETES: Final = 32  # concurrent requests: the next step is not pushed before rank 0 has deleted an old one


def removable(
    committed: list[StepId],
    present: set[StepId],
    *,
    keep_last: int,
    keep_every: int | None,
    marked: Set[StepId] = frozenset(),
) -> list[StepId]:
    """
    Return the checkpoints to remove, oldest first.

    Args:
        committed: Committed checkpoints, newest first.
        present: All checkpoints of which any object is stored, committed or not.
        keep_last: Number of committed checkpoints to keep, at least 1. The newest of all attempts are kept, and the
            newest of the newest attempt. The two sets differ while an attempt that resumed from an older step, because
            newer ones were damaged, has not reached these newer steps yet.
        keep_every: Committed steps that are multiples of this number are kept too.
        marked: Checkpoints that somebody keeps. They stay, committed or not, and count in no number.

    A checkpoint that is not committed is removed only after a newer step of the same or a later attempt is committed,
    because until then a slow rank may still be storing it.
    """
    newest_attempt = max((step_id.attempt for step_id in committed), default=0)
    counted = [step_id for step_id in committed if step_id not in marked]
    kept = set(counted[:keep_last])
    kept |= set([step_id for step_id in counted if step_id.attempt == newest_attempt][:keep_last])
    if keep_every is not None:
        kept |= {step_id for step_id in committed if step_id.step % keep_every == 0}
    removed = set(committed) - kept
    for step_id in present - set(committed):
        if any(newer > step_id and newer.attempt >= step_id.attempt for newer in committed):
            removed.add(step_id)
    return sorted(removed - marked)


def prune(
    store: ObjectStore,
    attempt: int,
    *,
    keep_last: int,
    keep_every: int | None,
    protected: Set[int] = frozenset(),
) -> list[StepId]:
    """
    Remove the checkpoints that :func:`removable` returns, and return them. Only rank 0 calls this.

    Checkpoints that are marked in the store, see :mod:`.kept`, are not removed, nor are the steps in *protected*, whose
    marks are still to be put. If the marks cannot be listed, nothing is removed.

    The manifests of a checkpoint are deleted before its blobs, so that no committed checkpoint misses a blob.

    Raises:
        SupersededError: A newer attempt runs. Nothing was removed.
        StoreError: The store failed before the end. The next call removes the rest.
    """
    check_newest(store, attempt)
    keys: defaultdict[StepId, list[str]] = defaultdict(list)
    for key in store.keys(STEPS_PREFIX):
        if (step_id := parse_step_id(key)) is not None:
            keys[step_id].append(key)
    committed = [step.step_id for step in committed_steps(store)]
    # The marks are listed last, so that one that was just put counts.
    marked = kept_ids(store) | {step_id for step_id in keys if step_id.step in protected}
    removed = removable(committed, set(keys), keep_last=keep_last, keep_every=keep_every, marked=marked)
    with ThreadPoolExecutor(NUM_DELETES, thread_name_prefix="spot-prune") as pool:
        for step_id in removed:
            for group in removal_groups(keys[step_id]):
                list(pool.map(store.delete, group))
            if step_id not in committed:  # its writer may have put a manifest since the objects were listed
                list(pool.map(store.delete, list(store.keys(step_id.prefix))))
    return removed


def removal_groups(keys: list[str]) -> tuple[list[str], list[str]]:
    """Split the *keys* of one checkpoint into the manifests, which are deleted first, and the other objects."""
    manifests = [key for key in keys if parse_rank_manifest_key(key) is not None]
    return manifests, sorted(set(keys) - set(manifests))
