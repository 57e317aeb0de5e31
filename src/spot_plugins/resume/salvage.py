"""The salvage of a step that is complete on the local disks of a job but never reached the store."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar, cast

from .. import events
from ..errors import SpotError, StoreError
from ..events import EventBus
from ..format.attempts import check_newest, read_claim
from ..format.commit import read_manifest, stored_manifests
from ..format.keys import (
    ATTEMPTS_PREFIX,
    FROZEN_PREFIX,
    STEPS_PREFIX,
    StepId,
    attempt_key,
    parse_attempt_key,
    parse_rank_manifest_key,
    parse_step_id,
    rank_manifest_key,
)
from ..format.manifest import Blob, ManifestError, RankManifest, TensorSlice, is_intact
from ..ranks import Job
from ..store import HangingDiskError, ObjectStore, patiently

NUM_PUTS: Final = 8  # blobs of 64 MiB in memory at once, to read, verify and put

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def salvage(
    store: ObjectStore,
    local: ObjectStore | None,
    job: Job,
    attempt: int,
    bus: EventBus,
) -> None:
    """
    Commit the newest step of which the local disks have everything that the store lacks.

    Every rank calls this on the training thread, before the step to resume from is chosen.

    1. Every rank lists the manifests on its local disk. It also keeps a copy of this attempt's claim there, because a
       later run at the same URL has another claim.
    2. Rank 0 proposes the steps that are newer than every committed step and of which every manifest exists, on a local
       disk or in the store. For each manifest it names the rank that stores it.
    3. Every rank checks that its local copies are complete.
    4. After that, every rank verifies and puts the blobs.
    5. After that, every rank puts the manifests.

    A step counts only if it has as many ranks as the job. It does not count if a later attempt has committed anything,
    because the training continues from there. It does not count if it is from another run at this URL.

    An error on any rank is a warning on all ranks, and the next older step is tried. Nothing is written after
    *attempt*, the one of this job, is superseded.
    """
    manifests: list[list[Any]] = []
    if local is not None:
        try:
            again(partial(_remove_another_runs, local, attempt))
            manifests = manifests_in(local, job.world_size)
        except StoreError as error:
            warn_of("the local copies cannot be used: %s", error)
            local = None
    claim = _own_claim(store, attempt) if job.rank == 0 else None
    notes = cast("list[Any]", job.exchange("salvage/found", cast("Any", [manifests, claim])))
    _keep_claim(local, attempt, notes[0][1])
    found = [note[0] for note in notes]
    if not any(found):
        return
    proposals = _propose(store, found) if job.rank == 0 else []
    proposals = cast("list[Any]", job.exchange("salvage/proposals", cast("Any", proposals))[0])
    for number, (step, of_attempt, shares) in enumerate(proposals):
        started = time.monotonic()
        share = Share(
            store,
            local,
            StepId(step, of_attempt),
            owners=shares[job.rank],
            world_size=job.world_size,
            by_attempt=attempt,
        )
        for task in (share.open, share.put_blobs, share.put_manifests):
            problems = job.exchange(f"salvage/{number}/{task.__name__}", problem_of(task))
            if any(problems):
                break
        else:
            push_s = time.monotonic() - started
            logger.info("step %s was on local disks only, and is stored now", step)
            bus.emit(events.Salvaged(step=step, attempt=of_attempt, num_bytes=share.num_bytes, push_s=push_s))
            return
        reason = next(problem for problem in problems if problem)
        logger.warning("step %s is on local disks only and cannot be stored: %s. An older step is tried", step, reason)


def warn_of(text: str, error: StoreError, *arguments: object) -> None:
    """Log *text* with the *arguments* and *error*, unless the disk hangs, which was said when it was given up."""
    if not isinstance(error, HangingDiskError):
        logger.warning(text, *arguments, error)


def again(action: Callable[[], _T]) -> _T:
    """Call *action*, which uses the local disk, and once more if the disk fails, because an error of it may pass."""
    try:
        return action()
    except StoreError:
        return action()


def _remove_another_runs(local: ObjectStore, attempt: int) -> None:
    """Remove steps of *attempt*. It has saved nothing yet, so they are from another run at this URL."""
    for key in list(local.keys(STEPS_PREFIX)):
        if (step_id := parse_step_id(key)) is not None and step_id.attempt == attempt:
            local.delete(key)


def manifests_in(local: ObjectStore, world_size: int) -> list[list[Any]]:
    """Return step, attempt, rank and the attempt's claim of each manifest of *world_size* ranks in *local*."""
    keys = again(lambda: list(local.keys(STEPS_PREFIX)))
    names = [name for key in keys if (name := parse_rank_manifest_key(key)) is not None]
    claims = {attempt: claim_of(local, attempt) for attempt in {name.step_id.attempt for name in names}}
    return [
        [*name.step_id, name.rank, claims[name.step_id.attempt]]
        for name in names
        if name.world_size == world_size > name.rank
    ]


def claim_of(store: ObjectStore, attempt: int) -> str | None:
    """Return the claim of *attempt*, which no other run has, or None if it is not in *store* or too large."""
    try:
        return patiently(lambda: read_claim(store, attempt)).decode(errors="replace")
    except (KeyError, ValueError):
        return None


def _own_claim(store: ObjectStore, attempt: int) -> str | None:
    try:
        return claim_of(store, attempt)
    except StoreError as error:
        logger.warning("the next attempt cannot use the local copies of this one: %s", error)
        return None


def _keep_claim(local: ObjectStore | None, attempt: int, claim: str | None) -> None:
    """Copy the *claim* of this job to *local*, and remove claims of attempts of which no step is left there."""
    if local is None or claim is None:
        return
    try:
        again(lambda: local.put(attempt_key(attempt), claim.encode()))
        saved = {step_id.attempt for key in local.keys(STEPS_PREFIX) if (step_id := parse_step_id(key)) is not None}
        for key in local.keys(ATTEMPTS_PREFIX):
            if parse_attempt_key(key) not in saved | {attempt}:
                local.delete(key)
    except StoreError as error:
        warn_of("the next attempt cannot use the local copies of this one: %s", error)


def _propose(store: ObjectStore, found: list[list[list[Any]]]) -> list[list[Any]]:
    """
    Choose the steps to store, the newest first, and the rank that stores each manifest.

    Args:
        store: The store of the run.
        found: The result of :func:`manifests_in` on each rank.

    Returns:
        For each step its number, its attempt, and for each rank a list of the ranks whose manifests it stores.
    """
    world_size = len(found)
    try:
        stored = patiently(lambda: stored_manifests(store))
        committed = [each.step_id for each in stored if each.is_committed]
        newest = max(committed, default=StepId(-1, 0))
        newest_attempt = max((step_id.attempt for step_id in committed), default=0)
        newer = [
            (StepId(step, attempt), rank, holder, claim)
            for holder, manifests in enumerate(found)
            for step, attempt, rank, claim in manifests
            if StepId(step, attempt) > newest and attempt >= newest_attempt
        ]
        claims = {attempt: claim_of(store, attempt) for attempt in {step_id.attempt for step_id, *_ in newer}}
    except StoreError as error:
        logger.warning("steps that are on local disks only cannot be looked for: %s", error)
        return []
    holders: defaultdict[StepId, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for step_id, rank, holder, claim in newer:
        if claim is not None and claim == claims[step_id.attempt]:
            holders[step_id][rank].add(holder)
    stored_ranks = {each.step_id: each.ranks for each in stored if each.world_size == world_size}
    proposals: list[list[Any]] = []
    for step_id in sorted(holders, reverse=True):
        wanted = set(range(world_size)) - stored_ranks.get(step_id, set())
        if wanted <= holders[step_id].keys():
            shares: list[list[int]] = [[] for _ in found]
            for rank in sorted(wanted):
                having = holders[step_id][rank]
                shares[rank if rank in having else min(having)].append(rank)
            proposals.append([*step_id, shares])
    return proposals


class Share:
    """
    The share of a step that one rank stores: the manifests of *owners* and their blobs, mostly its own alone.

    Args:
        store: The store of the run.
        local: The local copies. None only if there are no *owners*.
        step_id: The step.
        owners: The ranks whose manifests are stored.
        world_size: Number of ranks that saved the step.
        by_attempt: The attempt of this job.
        repairs: Whether frozen blobs that the store has are put again too, if the local disk has them.
    """

    def __init__(
        self,
        store: ObjectStore,
        local: ObjectStore | None,
        step_id: StepId,
        *,
        owners: list[int],
        world_size: int,
        by_attempt: int,
        repairs: bool = False,
    ) -> None:
        self._store = store
        self._local = local
        self._step_id = step_id
        self._owners = owners
        self._world_size = world_size
        self._by_attempt = by_attempt
        self._repairs = repairs
        self._manifests: list[RankManifest] = []
        self._blobs: list[tuple[Blob, list[TensorSlice]]] = []
        self.num_bytes = 0
        """Bytes of the blobs that were put."""

    def open(self) -> None:
        """
        Read the manifests and check that all blobs exist. Blobs of frozen tensors may be in the store already.

        Raises:
            _UnusableError: A local copy contradicts its name or its manifest.
            KeyError: A local copy is missing.
        """
        self._manifests = [self._manifest(owner) for owner in self._owners]
        blobs: dict[str, tuple[Blob, list[TensorSlice]]] = {}
        for manifest in self._manifests:
            for blob, inside in zip(manifest.blobs, manifest.slices_by_blob(), strict=True):
                blobs[blob.key] = blob, inside
        if any(key.startswith(FROZEN_PREFIX) for key in blobs):
            here = set(again(lambda: list(self._here.keys(FROZEN_PREFIX)))) if self._repairs else set()
            for key in set(patiently(lambda: list(self._store.keys(FROZEN_PREFIX)))) - here:
                blobs.pop(key, None)
        self._blobs = [*blobs.values()]
        for blob, _ in self._blobs:
            last_and_one_more = memoryview(bytearray(2))
            last = max(0, blob.num_bytes - 1)
            if again(partial(self._here.get_into, blob.key, last, [last_and_one_more])) != 1:
                raise _UnusableError(f"{blob.key!r} does not have the {blob.num_bytes} bytes of its manifest")

    def put_blobs(self) -> None:
        """
        Verify and put each blob. The step is not visible in the store before its manifests are.

        Raises:
            _UnusableError: A blob is damaged.
            SupersededError: There is a newer attempt than that of this job. Nothing was put.
        """
        if self._blobs:
            self._check_newest()
        with ThreadPoolExecutor(NUM_PUTS, thread_name_prefix="spot-salvage") as pool:
            self.num_bytes = sum(pool.map(self._put_blob, self._blobs))

    def put_manifests(self) -> None:
        """
        Put the manifests, which makes the step visible after all ranks have done so.

        Raises:
            SupersededError: There is a newer attempt than that of this job. No further manifest is put.
        """
        for manifest in self._manifests:
            self._check_newest()
            key = rank_manifest_key(self._step_id, manifest.rank, self._world_size)
            patiently(partial(self._store.put, key, manifest.encode()))

    def _check_newest(self) -> None:
        # The attempt of this job is checked. The attempt that saved the step is superseded by this job.
        patiently(lambda: check_newest(self._store, self._by_attempt))

    @property
    def _here(self) -> ObjectStore:
        assert self._local is not None  # a rank without a local disk gets no share
        return self._local

    def _manifest(self, owner: int) -> RankManifest:
        return again(lambda: read_manifest(self._here, self._step_id, owner, self._world_size))

    def _put_blob(self, item: tuple[Blob, list[TensorSlice]]) -> int:
        blob, inside = item
        data = memoryview(again(lambda: self._here.get(blob.key)))  # of this size, as open() has seen
        if not is_intact(data, blob, inside):
            raise _UnusableError(f"{blob.key!r} has changed since it was written, because its hash differs")
        patiently(partial(self._store.put, blob.key, data))
        return len(data)


def problem_of(task: Callable[[], None]) -> str | None:
    """Call *task*. Return its error as a text that can be sent to other ranks, or None."""
    try:
        task()
    except KeyError as error:
        return f"{error} is missing"
    except (_UnusableError, ManifestError, SpotError) as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a local file may hold anything, and no failure may end the resume
        return f"{type(error).__name__}: {error}"
    return None


class _UnusableError(Exception):
    """A local copy that contradicts its name or its manifest."""
