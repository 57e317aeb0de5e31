"""The fingerprints of committed steps, read from the store, and the comparison of two runs by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..format.commit import CommittedStep, committed_steps, read_manifest
from ..state import decode
from ..store import ObjectStore, open_store
from .record import KINDS
from .stored import Stored

PART = "fingerprints"
"""Name of the part that holds them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The fingerprints of one rank up to a committed step."""

    step: int
    attempt: int
    """Attempt that saved the step."""
    first_step: int
    """First step that is part of the digests. Above 1 if the number of ranks has changed before it."""
    world_size: int
    digests: Mapping[str, int]
    """Digest over all steps, by kind."""
    hashes: Mapping[int, Mapping[str, int]]
    """For each of the newest 128 steps its hashes by kind. 0: not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The first known difference between two runs on one rank."""

    rank: int
    what: tuple[str, ...]
    """Kinds that differ, see :data:`~spot_plugins.fingerprints.KINDS`."""
    step: int | None
    """First step that differs. None if it is older than the records of single steps."""


def read(
    url: str, *, step: int | None = None, rank: int = 0, storage_options: Mapping[str, Any] | None = None
) -> Recorded:
    """
    Read the fingerprints of one rank up to a committed step.

    Args:
        url: URL of the run.
        step: A committed step. None: the newest.
        rank: Rank whose steps to read.
        storage_options: Options of the fsspec file system.

    Raises:
        LookupError: There is no such step, no such rank in it, or it was saved without fingerprints.
        ManifestError: The manifest is damaged.
        StoreError: The store does not answer.
    """
    store = open_store(url, dict(storage_options or {}))
    steps = _steps_in(store)
    if not steps or (step is not None and step not in steps):
        raise LookupError(f"url={url!r} has no committed step{'' if step is None else f' {step}'}")
    return _read(store, steps[max(steps) if step is None else step], rank)


def compare_runs(
    url: str, other_url: str, *, step: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[Difference]:
    """
    Compare what two runs have trained up to a step that both have committed, on every rank.

    Args:
        url: URL of the one run.
        other_url: URL of the other run.
        step: Step up to which to compare. None: the newest that both have committed.
        storage_options: Options of the fsspec file system of both.

    Returns:
        One entry for each rank that differs. Empty if all steps were made of the same.

    Raises:
        LookupError: The runs have no committed step in common, or other numbers of ranks.
        ManifestError: A manifest is damaged.
        StoreError: The store does not answer.
    """
    stores = [open_store(each, dict(storage_options or {})) for each in (url, other_url)]
    steps, others = (_steps_in(store) for store in stores)
    common = steps.keys() & others.keys() & (steps.keys() if step is None else {step})
    if not common:
        raise LookupError(f"{url!r} and {other_url!r} have no committed step{'' if step is None else f' {step}'} both")
    newest = max(common)
    world_size = steps[newest].world_size
    if world_size != others[newest].world_size:
        raise LookupError(f"step {newest} was saved by {world_size} ranks and {others[newest].world_size} ranks")
    found = []
    for rank in range(world_size):
        difference = _difference(rank, _read(stores[0], steps[newest], rank), _read(stores[1], others[newest], rank))
        found += [difference] if difference is not None else []
    return found


def _steps_in(store: ObjectStore) -> dict[int, CommittedStep]:
    """Return the committed steps by number, of the latest attempt if several have committed one."""
    return {each.step_id.step: each for each in sorted(committed_steps(store), key=lambda each: each.step_id)}


def _read(store: ObjectStore, committed: CommittedStep, rank: int) -> Recorded:
    step_id = committed.step_id
    if not 0 <= rank < committed.world_size:
        raise LookupError(f"rank={rank}: step {step_id.step} was saved by {committed.world_size} ranks")
    manifest = read_manifest(store, step_id, rank, committed.world_size)
    document = manifest.state.get(PART) if isinstance(manifest.state, dict) else None
    stored = None if document is None else Stored.decode(decode(document, {}))
    if stored is None:
        raise LookupError(f"step {step_id.step} was saved without fingerprints")
    return Recorded(
        step=stored.step,
        attempt=step_id.attempt,
        first_step=stored.first_step,
        world_size=stored.world_size,
        digests=dict(zip(KINDS, stored.digests, strict=True)),
        hashes={each.step: dict(zip(KINDS, each.hashes, strict=True)) for each in stored.records},
    )


def _difference(rank: int, one: Recorded, other: Recorded) -> Difference | None:
    what = tuple(kind for kind in KINDS if one.digests[kind] != other.digests[kind])
    if not what:
        return None
    steps = sorted(one.hashes.keys() & other.hashes.keys())
    differing = [
        (number, kinds)
        for number in steps
        if (kinds := tuple(kind for kind in what if one.hashes[number][kind] != other.hashes[number][kind]))
    ]
    # If the first known step differs already, an older one may be the first.
    is_first = bool(differing) and (differing[0][0] > steps[0] or steps[0] == max(one.first_step, other.first_step))
    return Difference(rank=rank, what=what, step=differing[0][0] if is_first else None)
