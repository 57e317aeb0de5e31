"""The removal of old steps, of old incomplete steps, and of blobs that no step names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ..clock import wall_time
from ..errors import SpotError
from ..format.commit import StoredManifests, read_manifest
from ..format.kept import kept_ids
from ..format.keys import FROZEN_PREFIX, PROBE_PREFIX, StepId
from ..format.manifest import ManifestError
from ..format.retention import NUM_DELETES, removable, removal_groups
from ..store import ObjectInfo, ObjectStore, patiently
from .listing import PRUNED, Objects, inspect, open_objects
from .verify import Report, verify

QUIET_S: Final = 86400.0
"""
Time without a put to the run after which no training can be about to name a blob that is stored.

A training puts no frozen blob that the store has. It names it in the next manifest, however old the blob is. So the age
of the blob tells nothing, but a training that runs puts steps.
"""

_BLOB: Final = re.compile(r"(?:steps/.*/r\d+-b\d+|frozen/[0-9a-f]{32})\.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovedStep:
    """A step that is removed."""

    step_id: StepId
    is_committed: bool
    num_bytes: int
    """Bytes of its own objects. Frozen blobs, which other steps may name, are not among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """The objects that a pruning removes."""

    steps: tuple[RemovedStep, ...]
    """The steps, oldest first."""
    orphans: tuple[ObjectInfo, ...]
    """Objects that belong to no step which stays."""
    left_because: str | None
    """The reason why orphans, if there are any, are left. None if they are removed."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are removed."""
        return sum(each.num_bytes for each in self.steps) + sum(each.num_bytes for each in self.orphans)


def plan_prune(
    url: str, keep_last: int, storage_options: Mapping[str, Any] | None = None
) -> tuple[ObjectStore, PrunePlan]:
    """
    Find what can be removed from the run at *url*. Nothing is removed.

    As in a training, the newest *keep_last* committed steps stay, and the newest ones of the newest attempt, and all
    that somebody keeps. An incomplete step is removed only if a newer step of the same or a later attempt is committed.

    Raises:
        ConfigError: *url* cannot work, or no run is there.
        SpotError: A step that stays is damaged, so that an older one may be needed.
        StoreError: The store does not answer.
    """
    store, objects = open_objects(url, storage_options)
    removed = _removed(store, objects, keep_last)
    stays = [each for each in objects.committed if each.step_id not in removed]
    for each in stays:
        if each.step_id in objects.owners and each is not stays[0]:
            continue  # no resume needs a step that is only kept
        if (defect := inspect(store, objects, each)[1]) not in (None, PRUNED):
            raise _not_intact(each.step_id, str(defect))
    steps = [
        RemovedStep(
            step_id=step_id,
            is_committed=step_id in {each.step_id for each in objects.committed},
            num_bytes=sum(each.num_bytes for each in objects.by_step[step_id]),
        )
        for step_id in removed
    ]
    orphans = _orphans(store, objects, set(removed))
    left_because = None
    if orphans is None:
        orphans, left_because = (), "a manifest cannot be read, and may name them"
    elif orphans and (left_because := _reason_to_wait(objects)) is not None:
        orphans = ()
    return store, PrunePlan(steps=tuple(steps), orphans=tuple(orphans), left_because=left_because)


def check_newest(
    url: str,
    plan: PrunePlan,
    report: Report = lambda step, done, total: None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """
    Read every byte of the newest committed step before *plan* removes older ones, because sizes tell no changed byte.

    Nothing is read if the plan removes no committed step. The result of an earlier verification does not count.

    Raises:
        SpotError: The step is damaged, so that an older one may be needed.
        StoreError: The store does not answer.
    """
    if not any(each.is_committed for each in plan.steps):
        return
    found = verify(url, report=report, storage_options=storage_options)
    for each in found.steps:
        if each.damages:
            raise _not_intact(each.step_id, f"{each.damages[0].key} {each.damages[0].reason}")
    if not found.is_good:
        raise SpotError(
            "nothing is removed, because a training has pruned each step before all of it was read. Run it again"
        )


def prune(
    store: ObjectStore, plan: PrunePlan, keep_last: int, on_removed: Callable[[str], None] = lambda text: None
) -> None:
    """
    Remove what *plan* names, if it can still be removed. Call :func:`check_newest` before.

    The manifests of a step are deleted before its blobs, so that no step is ever committed and misses a blob. Blobs
    that no step names come last.

    Args:
        store: The store of the run.
        plan: The plan for it.
        keep_last: Number of committed steps that stay, as for the plan.
        on_removed: Gets a sentence for each step that was removed or left.

    Raises:
        StoreError: The store refuses to delete, or does not answer. A next call removes the rest.
    """
    still = set(_removed(store, Objects(store), keep_last)) if plan.steps else set()
    with ThreadPoolExecutor(NUM_DELETES, thread_name_prefix="spot-prune") as pool:

        def delete(keys: Iterable[str]) -> None:
            list(pool.map(lambda key: patiently(partial(store.delete, key)), keys))

        for each in plan.steps:
            step_id = each.step_id
            # The marks are listed right before, so that one that was just put counts.
            if step_id not in still or step_id in patiently(lambda: kept_ids(store)):
                on_removed(f"step {step_id.step} of attempt {step_id.attempt} is needed by now, and stays")
                continue
            # Twice, because a slow writer may have put a manifest since the objects were listed.
            for _ in range(2):
                for group in removal_groups(patiently(partial(_keys, store, step_id.prefix))):
                    delete(group)
            on_removed(f"removed step {step_id.step} of attempt {step_id.attempt}")
        if plan.orphans:
            delete(each.key for each in plan.orphans)
            on_removed(f"removed {len(plan.orphans)} objects that no step names")


def _not_intact(step_id: StepId, defect: str) -> SpotError:
    return SpotError(
        f"step {step_id.step} is not intact: {defect}. Nothing is removed, because an older step may be needed. Repair "
        f"it, or remove the folder {step_id.prefix} by hand"
    )


def _removed(store: ObjectStore, objects: Objects, keep_last: int) -> list[StepId]:
    return removable(
        [each.step_id for each in objects.committed],
        set(objects.by_step),
        keep_last=keep_last,
        keep_every=None,
        marked=patiently(lambda: kept_ids(store)),
    )


def _keys(store: ObjectStore, prefix: str) -> list[str]:
    return list(store.keys(prefix))


def _reason_to_wait(objects: Objects) -> str | None:
    """Return why blobs may still be named, or None if no training can be about to."""
    newest = objects.newest_put()
    if newest is None:
        return "the store does not tell when objects were put"
    if wall_time() - newest < QUIET_S:
        return (
            f"the run was written to in the last {QUIET_S / 3600:.0f} hours, and a training may be about to name them"
        )
    return None


def _orphans(store: ObjectStore, objects: Objects, removed: set[StepId]) -> Sequence[ObjectInfo] | None:
    """Return the blobs that no step names which stays, and what is left of probes. None if that cannot be told."""
    named: set[str] = set()
    stays = [each for step_id, each in objects.manifests.items() if step_id not in removed]
    with ThreadPoolExecutor(NUM_DELETES, thread_name_prefix="spot-get") as pool:
        for keys in pool.map(partial(_named_in, store), stays):
            if keys is None:
                return None
            named |= keys
    complete = {each.step_id.prefix for each in objects.committed if each.step_id not in removed}
    return [
        each
        for key, each in objects.by_key.items()
        if key not in named
        if key.startswith(PROBE_PREFIX) or (_BLOB.fullmatch(key) and key.startswith((FROZEN_PREFIX, *complete)))
    ]


def _named_in(store: ObjectStore, stored: StoredManifests) -> set[str] | None:
    """Return the keys of all blobs in the manifests of a step, committed or not. None if one cannot be read."""
    named: set[str] = set()
    for rank in stored.ranks:
        try:
            manifest = patiently(partial(read_manifest, store, stored.step_id, rank, stored.world_size))
        except (ManifestError, KeyError):
            return None
        named |= {blob.key for blob in manifest.blobs}
    return named
