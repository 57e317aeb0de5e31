"""The committed steps of a run as a person sees them, and the choice of one. No torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, CorruptCheckpointError, IncompatibleCheckpointError, SpotError
from ..format.attempts import read_claim
from ..format.commit import CommittedStep, committed_steps
from ..format.kept import kept_steps
from ..format.keys import StepId
from ..locations import is_local
from ..store import ObjectStore, open_store, patiently
from .manifests import manifests_of


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredStep:
    """A committed step, as ``spot show`` prints it."""

    step: int
    attempt: int
    """The attempt that saved the step."""
    world_size: int
    """Number of ranks that saved the step."""
    num_bytes: int | None
    """Bytes of all blobs, those included that it shares with other steps. None if a manifest cannot be read."""
    kept_by: tuple[str, ...]
    """The owners that keep the step."""
    started_at: str | None
    """Start of the attempt, in UTC. None if it is unknown."""


def open_run(url: str, storage_options: Mapping[str, Any] | None = None) -> ObjectStore:
    """
    Return the store of the run at *url*, to read from it.

    Raises:
        ConfigError: *url* cannot work, or nothing is there.
        StoreError: The store does not answer.
    """
    store = open_store(url, storage_options)
    if not patiently(lambda: committed_steps(store)):
        kind = "directory" if is_local(url) else "URL"
        raise ConfigError(f"there is no committed step at this {kind}. Check the URL, it is that of the training")
    return store


def stored_steps(url: str, storage_options: Mapping[str, Any] | None = None) -> list[StoredStep]:
    """
    Return the committed steps of the run at *url*, newest first.

    Raises:
        ConfigError: *url* cannot work, or nothing is there.
        StoreError: The store does not answer.
    """
    store = open_run(url, storage_options)
    owners: defaultdict[StepId, list[str]] = defaultdict(list)
    for mark in patiently(lambda: list(kept_steps(store))):
        owners[mark.step_id].append(mark.owner)
    steps = patiently(lambda: committed_steps(store))
    starts = {attempt: _start_of(store, attempt) for attempt in {each.step_id.attempt for each in steps}}
    found = [
        StoredStep(
            step=each.step_id.step,
            attempt=each.step_id.attempt,
            world_size=each.world_size,
            num_bytes=_num_bytes(store, each),
            kept_by=tuple(owners[each.step_id]),
            started_at=starts[each.step_id.attempt],
        )
        for each in steps
    ]
    if all(each.num_bytes is not None for each in found):
        return found
    left = {each.step_id for each in patiently(lambda: committed_steps(store))}
    return [each for each in found if each.num_bytes is not None or StepId(each.step, each.attempt) in left]


def choose_step(store: ObjectStore, step: int | None = None, *, kept: bool = False) -> CommittedStep:
    """
    Return the committed step *step*, or the newest one. Of several with this number it is that of the latest attempt.

    Args:
        store: The store of a run.
        step: The number of the step. None: the newest, or with *kept* the one that is kept.
        kept: Whether only steps count that somebody keeps.

    Raises:
        ConfigError: There is no such step, or *step* is None and several steps are kept.
        StoreError: The store does not answer.
    """
    found = patiently(lambda: committed_steps(store))
    if kept:
        marked = {mark.step_id for mark in patiently(lambda: list(kept_steps(store)))}
        found = [each for each in found if each.step_id in marked]
    there = [each.step_id.step for each in found]
    listed = ", ".join(map(str, dict.fromkeys(there))) or "none"
    kind = "kept" if kept else "committed"
    if step is None and kept and len(set(there)) > 1:
        raise ConfigError(f"several steps are kept: {listed}. Give the number of one")
    if not there or (step is not None and step not in there):
        raise ConfigError(f"step={step} is not among the {kind} steps, which are: {listed}")
    return found[0] if step is None else next(each for each in found if each.step_id.step == step)


@contextmanager
def no_damage_if_pruned(store: ObjectStore, step_id: StepId) -> Iterator[None]:
    """
    Say of a step that a training prunes while the ``with`` block reads it that it is gone, and not that it is damaged.

    Raises:
        SpotError: The block found damage in a step that is not committed any more.
    """
    try:
        yield
    except CorruptCheckpointError:
        if any(each.step_id == step_id for each in patiently(lambda: committed_steps(store))):
            raise
        raise SpotError(
            f"step {step_id.step} was pruned while it was read. Run it again, or give a step that is kept"
        ) from None


def _num_bytes(store: ObjectStore, committed: CommittedStep) -> int | None:
    try:
        blobs = {blob.key: blob.num_bytes for each in manifests_of(store, committed) for blob in each.blobs}
    except (CorruptCheckpointError, IncompatibleCheckpointError):
        return None
    return sum(blobs.values())


def _start_of(store: ObjectStore, attempt: int) -> str | None:
    try:
        started_at = json.loads(patiently(lambda: read_claim(store, attempt)))["started_at"]
    except (KeyError, ValueError, TypeError):
        return None
    return started_at if isinstance(started_at, str) else None
