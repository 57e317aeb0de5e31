"""Which checkpoints stay, and how the others go without ever leaving half of one to a reader."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..store import ObjectStore
from .attempts import check_newest
from .commit import committed_steps
from .keys import STEPS_PREFIX, StepId, parse_rank_manifest_key, parse_step_id

NUM_DELETES: Final = 8  # deletes in flight


def doomed(committed: list[StepId], present: set[StepId], *, keep_last: int, keep_every: int | None) -> list[StepId]:
    """
    Return the checkpoints to remove, oldest first.

    Args:
        committed: Committed checkpoints, newest first.
        present: All checkpoints of which anything is stored, committed or not.
        keep_last: How many of the newest committed ones stay, at least 1: of all, and of the newest attempt. They
            differ while an attempt that fell back behind damaged checkpoints has not overtaken them yet.
        keep_every: Committed steps that are multiples of this stay too.

    A checkpoint that is not committed goes only when a newer one of its own or of a later attempt is: until then
    a slow rank may still be on its way.
    """
    newest_attempt = max((step_id.attempt for step_id in committed), default=0)
    kept = set(committed[:keep_last])
    kept |= set([step_id for step_id in committed if step_id.attempt == newest_attempt][:keep_last])
    if keep_every is not None:
        kept |= {step_id for step_id in committed if step_id.step % keep_every == 0}
    removed = set(committed) - kept
    for step_id in present - set(committed):
        if any(newer > step_id and newer.attempt >= step_id.attempt for newer in committed):
            removed.add(step_id)
    return sorted(removed)


def prune(store: ObjectStore, attempt: int, *, keep_last: int, keep_every: int | None) -> list[StepId]:
    """
    Remove what :func:`doomed` names and return it. Only rank 0 of the newest attempt calls this.

    Of each checkpoint the manifests go first, so that it stops being committed before any blob is missing.

    Raises:
        SupersededError: A newer attempt runs; nothing was removed.
        StoreError: The store failed on the way; what is left is removed next time.
    """
    check_newest(store, attempt)
    keys: defaultdict[StepId, list[str]] = defaultdict(list)
    for key in store.keys(STEPS_PREFIX):
        if (step_id := parse_step_id(key)) is not None:
            keys[step_id].append(key)
    committed = [step.step_id for step in committed_steps(store)]
    removed = doomed(committed, set(keys), keep_last=keep_last, keep_every=keep_every)
    with ThreadPoolExecutor(NUM_DELETES, thread_name_prefix="spot-prune") as pool:
        for step_id in removed:
            for group in removal_groups(keys[step_id]):
                list(pool.map(store.delete, group))
    return removed


def removal_groups(keys: list[str]) -> tuple[list[str], list[str]]:
    """Return *keys*, all of one checkpoint: manifests, which go first, and the rest. Half removed is not whole."""
    manifests = [key for key in keys if parse_rank_manifest_key(key) is not None]
    return manifests, sorted(set(keys) - set(manifests))
