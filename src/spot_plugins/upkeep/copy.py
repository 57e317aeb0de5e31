"""The copy of a run to another store: verified on the way, committed last, and continued where it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..config import checked
from ..errors import ConfigError, CorruptCheckpointError, StoreError
from ..format.attempts import MAX_CLAIM_BYTES, read_claim
from ..format.commit import NUM_GETS, CommittedStep, committed_steps
from ..format.keys import (
    ATTEMPTS_PREFIX,
    RUN_KEY,
    StepId,
    attempt_key,
    keep_key,
    merged_manifest_key,
    parse_attempt_key,
    rank_manifest_key,
)
from ..format.manifest import MAX_MANIFEST_BYTES
from ..store import ObjectStore, get_at_most, open_store, patiently
from .blobs import NamedBlob, Room, blobs_of, read_blob, whole_manifests
from .listing import Objects, open_objects
from .verify import MAX_TRIES, Report


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedStep:
    """The result for one step."""

    step_id: StepId
    num_put: int = 0
    """Number of objects that were put."""
    num_there: int = 0
    """Number of objects that the target had already, with the same content."""
    num_bytes: int = 0
    """Bytes of the objects that were put."""
    problem: str | None = None
    """The reason why the step was not copied. Nothing of it is committed then."""
    is_gone: bool = False
    """True if the step was pruned while it was copied."""


def copy_run(
    url: str,
    target_url: str,
    *,
    every: bool = False,
    report: Report = lambda step, done, total: None,
    storage_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> list[CopiedStep]:
    """
    Copy committed steps of the run at *url* to *target_url*, oldest first, with claims and marks.

    Args:
        url: URL of the run.
        target_url: URL of the copy. Nothing is there yet, or an earlier copy of the same run.
        every: Whether all committed steps are copied, and not only the newest.
        report: Gets the progress.
        storage_options: Options of the fsspec file system of *url*.
        target_options: Options of the fsspec file system of *target_url*.

    Raises:
        ConfigError: A URL cannot work, there is no committed step, or the target holds something else.
        IncompatibleCheckpointError: Newer software wrote a step.
        StoreError: A store does not answer, or refuses.
    """
    if checked("url", url).rstrip("/") == checked("url", target_url).rstrip("/"):
        raise ConfigError("the target is the run itself: give another URL to copy it to")
    found: list[CopiedStep] = []
    for _ in range(MAX_TRIES):
        store, objects = open_objects(url, storage_options)
        if not objects.committed:
            raise ConfigError("there is no committed step at the URL of the run, so nothing can be copied")
        copier = _Copier(store, objects, open_store(target_url, target_options), report)
        found = [copier.copy(each) for each in reversed(objects.committed[: None if every else 1])]
        if not all(each.is_gone for each in found):
            break
    return found


class _Copier:
    """Copies steps one after the other."""

    def __init__(self, store: ObjectStore, objects: Objects, target: ObjectStore, report: Report) -> None:
        self._store = store
        self._objects = objects
        self._target = target
        self._report = report
        self._room = Room()
        self._there = Objects(target)
        self._attempts = objects.attempts | {step_id.attempt for step_id in objects.by_step}
        self._check_same_run({step_id.attempt for step_id in self._there.by_step})
        self._copy_small(RUN_KEY)
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-put") as pool:
            list(pool.map(self._copy_claim, objects.attempts - self._there.attempts))

    def copy(self, committed: CommittedStep) -> CopiedStep:
        """Copy one step."""
        step_id = committed.step_id
        try:
            return self._copy(committed)
        except CorruptCheckpointError as error:
            # Pruning deletes all manifests before the first blob.
            if committed not in patiently(lambda: committed_steps(self._store)):
                return CopiedStep(step_id=step_id, is_gone=True)
            return CopiedStep(step_id=step_id, problem=f"{error.key} {error.reason}")

    def _copy(self, committed: CommittedStep) -> CopiedStep:
        step_id, world_size = committed.step_id, committed.world_size
        manifests = whole_manifests(self._store, committed)
        blobs = blobs_of(manifests)
        total, done, num_bytes = sum(each.blob.num_bytes for each in blobs), 0, 0
        num_put = 0
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-put") as pool:
            for each, was_put in zip(blobs, pool.map(partial(self._copy_blob, step_id.step), blobs), strict=True):
                num_put += was_put
                num_bytes += each.blob.num_bytes if was_put else 0
                done += each.blob.num_bytes
                self._report(step_id.step, done, total)
        for owner in self._objects.owners.get(step_id, ()):
            self._copy_small(keep_key(step_id, owner))
        self._check_same_run()
        documents = [(rank_manifest_key(step_id, each.rank, world_size), each.encode()) for each in manifests]
        merged = b"".join(data for _, data in documents)
        if merged_manifest_key(step_id) in self._objects.by_key and len(merged) <= MAX_MANIFEST_BYTES:
            documents.append((merged_manifest_key(step_id), merged))  # after the commit, as when it was saved
        for key, data in documents:
            if self._put(key, data):
                num_put, num_bytes = num_put + 1, num_bytes + len(data)
        num_there = len(blobs) + len(documents) - num_put
        return CopiedStep(step_id=step_id, num_put=num_put, num_there=num_there, num_bytes=num_bytes)

    def _copy_blob(self, step: int, named: NamedBlob) -> bool:
        """Copy a blob unless the target has it intact. Return whether it was put."""
        key, num_bytes = named.blob.key, named.blob.num_bytes
        with self._room.take(2 * num_bytes):  # because some clients copy what they put
            there = self._there.by_key.get(key)
            is_there = there is not None and there.num_bytes == num_bytes
            if is_there and not isinstance(read_blob(self._target, named), str):
                return False
            image = read_blob(self._store, named)
            if isinstance(image, str):
                raise CorruptCheckpointError(step, key, image)
            patiently(lambda: self._target.put(key, image))
            return True

    def _copy_small(self, key: str) -> None:
        """Copy a mark or ``run.json``, if the run has it and it is small."""
        with suppress(KeyError, ValueError):
            self._put(key, patiently(lambda: get_at_most(self._store, key, MAX_CLAIM_BYTES)))

    def _copy_claim(self, attempt: int) -> None:
        """Claim *attempt* at the target with the words of the run. A claim that a training has just made stays."""
        try:
            claim = patiently(partial(read_claim, self._store, attempt))
        except (KeyError, ValueError):
            return
        try:
            patiently(lambda: self._target.put_if_absent(attempt_key(attempt), claim))
        except StoreError as error:
            if error.retryable:
                raise
            patiently(lambda: self._target.put(attempt_key(attempt), claim))  # the target has no put-if-absent

    def _put(self, key: str, data: bytes) -> bool:
        """Put *data* unless the target has the same. Return whether it was put."""
        if key in self._there.by_key or key == RUN_KEY:  # which is not listed
            with suppress(KeyError, ValueError):
                if patiently(lambda: get_at_most(self._target, key, len(data))) == data:
                    return False
        patiently(lambda: self._target.put(key, data))
        return True

    def _check_same_run(self, saved_by: Set[int] = frozenset()) -> None:
        """
        Check that the target has no attempt that the run does not have.

        Raises:
            ConfigError: A training has run there, or it is the copy of another run. A step of this run would be taken
                for one of the other.
        """
        claims = patiently(lambda: list(self._target.keys(ATTEMPTS_PREFIX)))
        claimed = {attempt for key in claims if (attempt := parse_attempt_key(key)) is not None}
        strange = sorted((claimed | saved_by) - self._attempts)
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
            alike = all(pool.map(self._is_same_claim, claimed & self._objects.attempts))
        if strange or not alike:
            which = f"attempt {strange[0]}, which this run has not" if strange else "an attempt of another start"
            raise ConfigError(f"the target has {which}: another training has run there. Give a new URL")

    def _is_same_claim(self, attempt: int) -> bool:
        texts = []
        for store in (self._store, self._target):
            try:
                texts.append(patiently(partial(read_claim, store, attempt)))
            except (KeyError, ValueError):
                return False
        return texts[0] == texts[1]
