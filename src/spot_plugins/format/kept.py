"""
Kept checkpoints: those that retention never removes, whatever the later attempts of the run are set to.

A checkpoint is kept while an object below ``keep/`` names it. Each owner has an object of its own, so that the program
and a host can keep the same checkpoint without knowing of each other. Frozen blobs need no mark, because retention
never removes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..store import ObjectStore
from .attempts import check_newest
from .commit import committed_steps, stored_manifests
from .keys import KEEP_PREFIX, StepId, keep_key, parse_keep_key
from .manifest import canonical_json


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A mark of one owner in the store."""

    step_id: StepId
    owner: str
    is_committed: bool
    """True if the checkpoint can be read. A mark may be put before the checkpoint is committed."""


def kept_ids(store: ObjectStore) -> set[StepId]:
    """Return the checkpoints that any owner keeps, committed or not."""
    return {mark.step_id for key in store.keys(KEEP_PREFIX) if (mark := parse_keep_key(key)) is not None}


def kept_steps(store: ObjectStore) -> Iterator[KeptStep]:
    """Yield all marks, ordered by step, attempt and owner."""
    marks = [mark for key in store.keys(KEEP_PREFIX) if (mark := parse_keep_key(key)) is not None]
    committed = {each.step_id for each in committed_steps(store)} if marks else set()
    for mark in sorted(marks):
        yield KeptStep(mark.step_id, mark.owner, mark.step_id in committed)


def keep(store: ObjectStore, attempt: int, step: int, owner: str, *, is_saving: bool) -> StepId | None:
    """
    Mark a checkpoint as kept by *owner*. A second call changes nothing.

    Args:
        store: The store of the run.
        attempt: Number of the attempt that calls.
        step: The step.
        owner: A word in small letters.
        is_saving: Whether *attempt* is just saving the step. Then the mark is put before the commit. Otherwise the
            checkpoint of this step that the store has is marked, and of several the one of the latest attempt.

    Returns:
        The checkpoint. None if *is_saving* is false and the store does not have the step. Then there is no mark.

    Raises:
        SupersededError: A newer attempt runs. Nothing was written.
        StoreError: The store failed. The mark may be stored nevertheless.
    """
    check_newest(store, attempt)
    step_id = StepId(step, attempt) if is_saving else _stored_as(store, attempt, step)
    if step_id is None:
        return None
    mark = {"step": step_id.step, "attempt": step_id.attempt, "owner": owner}
    store.put(keep_key(step_id, owner), canonical_json(mark))
    if not is_saving and _stored_as(store, attempt, step) != step_id:  # an older attempt has just removed it
        store.delete(keep_key(step_id, owner))
        return None
    return step_id


def release(store: ObjectStore, attempt: int, step: int, owner: str) -> None:
    """
    Remove the marks of *owner* for *step*, of all attempts. The next pruning treats the step like any other.

    Raises:
        SupersededError: A newer attempt runs. Nothing was removed.
        StoreError: The store failed. Some marks may be removed.
    """
    check_newest(store, attempt)
    for key in list(store.keys(f"{KEEP_PREFIX}{step:010d}-")):
        if (mark := parse_keep_key(key)) is not None and mark.owner == owner:
            store.delete(key)


def _stored_as(store: ObjectStore, attempt: int, step: int) -> StepId | None:
    """Return the latest checkpoint of *step*. One of *attempt* counts before all of its ranks have committed it."""
    found = [
        each.step_id
        for each in stored_manifests(store)
        if each.step_id.step == step and (each.is_committed or each.step_id.attempt == attempt)
    ]
    return max(found, default=None)
