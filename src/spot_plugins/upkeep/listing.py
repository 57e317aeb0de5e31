"""The steps of a run as a person sees them: committed and incomplete ones, their sizes, ages and defects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from ..errors import GONE, ConfigError, CorruptCheckpointError, IncompatibleCheckpointError
from ..format.attempts import MAX_CLAIM_BYTES
from ..format.commit import CommittedStep, StoredManifests, committed_steps
from ..format.keys import (
    ATTEMPTS_PREFIX,
    FROZEN_PREFIX,
    KEEP_PREFIX,
    PROBE_PREFIX,
    STEPS_PREFIX,
    VERIFIED_KEY,
    StepId,
    parse_attempt_key,
    parse_keep_key,
    parse_rank_manifest_key,
    parse_step_id,
)
from ..locations import is_local
from ..resume.manifests import manifests_of
from ..store import ObjectInfo, ObjectStore, get_at_most, open_store, patiently

MAX_NAMED_RANKS: Final = 8

_PREFIXES: Final = (STEPS_PREFIX, ATTEMPTS_PREFIX, FROZEN_PREFIX, KEEP_PREFIX, PROBE_PREFIX)

PRUNED: Final = "was pruned meanwhile"
"""The defect of a step that is gone since the objects were listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedStep:
    """A step of which any object is stored."""

    step: int
    attempt: int
    """The attempt that saved the step."""
    modified_at: float | None
    """Time of the newest put, in seconds since 1970. For a committed step this is the time of the commit."""
    num_bytes: int
    """Bytes of all blobs, those included that the step shares with others. Of an incomplete step: what is stored."""
    num_ranks: int
    """Number of ranks whose manifests are stored."""
    world_size: int | None
    """Number of ranks that the step needs. None if no manifest is stored."""
    missing_ranks: tuple[int, ...]
    """The first ranks whose manifests are missing, :data:`MAX_NAMED_RANKS` at most."""
    is_committed: bool
    is_newest: bool
    """True for the step from which a resume continues, if it is intact."""
    kept_by: tuple[str, ...]
    """The owners that keep the step."""
    defect: str | None
    """The damage of a committed step, as far as sizes and manifests tell. None if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The steps of a run, newest first."""

    steps: tuple[ListedStep, ...]
    verified: Mapping[str, Any] | None
    """The note of the last good verification, if there is one."""


class Objects:
    """
    One listing of the objects of a run. What else lies at its URL is not looked at.

    Args:
        store: The store of the run.

    Raises:
        StoreError: The store does not answer.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.by_key: dict[str, ObjectInfo] = {
            each.key: each for prefix in _PREFIXES for each in patiently(partial(_objects, store, prefix))
        }
        """The objects, without the notes at the root."""
        self.by_step: defaultdict[StepId, list[ObjectInfo]] = defaultdict(list)
        """The objects of each step."""
        self.owners: defaultdict[StepId, list[str]] = defaultdict(list)
        """The owners that keep a step."""
        self.attempts: set[int] = set()
        """The attempts that are claimed."""
        ranks: defaultdict[StepId, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for key, each in self.by_key.items():
            if (step_id := parse_step_id(key)) is not None:
                self.by_step[step_id].append(each)
            if (name := parse_rank_manifest_key(key)) is not None:
                ranks[name.step_id][name.world_size].add(name.rank)
            if (mark := parse_keep_key(key)) is not None:
                self.owners[mark.step_id].append(mark.owner)
            if (attempt := parse_attempt_key(key)) is not None:
                self.attempts.add(attempt)
        self.manifests: dict[StepId, StoredManifests] = {
            step_id: max(
                (StoredManifests(step_id, world_size, present) for world_size, present in by_size.items()),
                key=lambda each: (each.is_committed, len(each.ranks)),
            )
            for step_id, by_size in ranks.items()
        }
        """The manifests of each step. If two jobs left some, those of the committed one or of the larger part."""

    @property
    def committed(self) -> list[CommittedStep]:
        """The committed steps, newest first."""
        found = [CommittedStep(each.step_id, each.world_size) for each in self.manifests.values() if each.is_committed]
        return sorted(found, key=lambda each: each.step_id, reverse=True)

    def newest_put(self, objects: Iterable[ObjectInfo] | None = None) -> float | None:
        """Return the time of the newest put among *objects*, or among all. None if the store does not tell times."""
        times = [each.modified_at for each in (self.by_key.values() if objects is None else objects)]
        known = [each for each in times if each is not None]
        return max(known) if known and len(known) == len(times) else None


def open_objects(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[ObjectStore, Objects]:
    """
    Return the store of the run at *url*, and its objects.

    Raises:
        ConfigError: *url* cannot work, or no run is there.
        StoreError: The store does not answer.
    """
    store = open_store(url, storage_options)
    objects = Objects(store)
    if not objects.by_step and not objects.attempts:
        kind = "directory" if is_local(url) else "URL"
        raise ConfigError(f"there is no run at this {kind}. Check the URL, it is that of the training")
    return store, objects


def list_run(url: str, storage_options: Mapping[str, Any] | None = None) -> Listing:
    """
    List the steps of the run at *url*.

    The manifests of committed steps are read, and the sizes of their blobs are compared with what is stored. The bytes
    of the blobs are not read. See :mod:`.verify`.

    Raises:
        ConfigError: *url* cannot work, or no run is there.
        StoreError: The store does not answer.
    """
    store, objects = open_objects(url, storage_options)
    newest = next(iter(objects.committed), None)
    steps = [_listed(store, objects, step_id, newest) for step_id in sorted(objects.by_step, reverse=True)]
    return Listing(steps=tuple(each for each in steps if each.defect != PRUNED), verified=_verified(store))


def _listed(store: ObjectStore, objects: Objects, step_id: StepId, newest: CommittedStep | None) -> ListedStep:
    stored = objects.manifests.get(step_id)
    own = objects.by_step[step_id]
    is_committed = stored is not None and stored.is_committed
    num_bytes, defect = sum(each.num_bytes for each in own), None
    if stored is not None and is_committed:
        num_bytes, defect = inspect(store, objects, CommittedStep(step_id, stored.world_size), num_bytes)
    absent = (rank for rank in range(stored.world_size if stored else 0) if stored and rank not in stored.ranks)
    return ListedStep(
        step=step_id.step,
        attempt=step_id.attempt,
        modified_at=objects.newest_put(own),
        num_bytes=num_bytes,
        num_ranks=len(stored.ranks) if stored else 0,
        world_size=stored.world_size if stored else None,
        missing_ranks=tuple(islice(absent, MAX_NAMED_RANKS)),
        is_committed=is_committed,
        is_newest=newest is not None and step_id == newest.step_id,
        kept_by=tuple(sorted(objects.owners.get(step_id, ()))),
        defect=defect,
    )


def inspect(
    store: ObjectStore, objects: Objects, committed: CommittedStep, num_bytes: int = 0
) -> tuple[int, str | None]:
    """
    Compare the blobs of a committed step with the listing, by their sizes.

    Returns:
        The bytes of all blobs, or *num_bytes* if a manifest cannot be read. Then the first defect, or None.

    Raises:
        StoreError: The store does not answer.
    """
    num_bytes, defect = _inspect(store, objects, committed, num_bytes)
    if defect is not None and committed not in patiently(lambda: committed_steps(store)):
        return num_bytes, PRUNED
    return num_bytes, defect


def _inspect(store: ObjectStore, objects: Objects, committed: CommittedStep, num_bytes: int) -> tuple[int, str | None]:
    try:
        manifests = manifests_of(store, committed)
    except (CorruptCheckpointError, IncompatibleCheckpointError) as error:
        key = getattr(error, "key", "")
        return num_bytes, f"{key} {error.reason}".strip()
    blobs = {blob.key: blob.num_bytes for each in manifests for blob in each.blobs}
    for key, size in sorted(blobs.items()):
        there = objects.by_key.get(key)
        if there is None:
            return sum(blobs.values()), f"{key} {GONE}"
        if there.num_bytes != size:
            return sum(blobs.values()), f"{key} has {there.num_bytes} bytes instead of {size}"
    return sum(blobs.values()), None


def _objects(store: ObjectStore, prefix: str) -> list[ObjectInfo]:
    return list(store.objects(prefix))


def _verified(store: ObjectStore) -> dict[str, Any] | None:
    try:
        note = json.loads(patiently(lambda: get_at_most(store, VERIFIED_KEY, MAX_CLAIM_BYTES)))
    except (KeyError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None
