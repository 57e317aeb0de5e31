"""The verification of stored steps: every byte is read and compared with its hash, and an interruption costs little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias

from ..clock import SystemClock, wall_time
from ..errors import ConfigError, StoreError
from ..format.commit import NUM_GETS, CommittedStep, committed_steps
from ..format.keys import FROZEN_PREFIX, VERIFIED_KEY, StepId, merged_manifest_key
from ..format.manifest import MAX_MANIFEST_BYTES, RankManifest, canonical_json, decode_merged
from ..resume.stored import choose_step, open_run
from ..store import ObjectInfo, ObjectStore, get_at_most, patiently
from .blobs import Damage, NamedBlob, Room, blobs_of, read_blob, read_manifests
from .known_good import KnownGood, settled

MAX_TRIES: Final = 3  # a training may prune the newest step while it is verified

Report: TypeAlias = Callable[[int, int, int], None]
"""Gets a step, the bytes of it that are done, and all of its bytes. Called from the main thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedStep:
    """The result for one step."""

    step_id: StepId
    num_objects: int
    num_bytes: int
    """Bytes of the blobs that were verified for this step, without those that were verified for one before."""
    num_bytes_before: int
    """Those of them that an interrupted verification had read."""
    damages: tuple[Damage, ...]
    is_gone: bool
    """True if the step was pruned while it was verified. Then it has no damages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The result of :func:`verify`."""

    steps: tuple[VerifiedStep, ...]
    """The steps, newest first."""
    verified_at: str
    """The time of the end, in UTC."""
    note_problem: str | None
    """The reason why the note of a good verification was not stored. None if it was stored, or nothing was good."""

    @property
    def is_good(self) -> bool:
        """True if at least one step was verified, and none is damaged."""
        return any(not each.is_gone for each in self.steps) and not any(each.damages for each in self.steps)


def verify(
    url: str,
    step: int | None = None,
    *,
    every: bool = False,
    report: Report = lambda step, done, total: None,
    storage_options: Mapping[str, Any] | None = None,
) -> Verification:
    """
    Read every byte of committed steps and compare it with its hash. If all are good, store a note with the time.

    If the last call with the same *url*, *step* and *every* on this machine was interrupted, it is continued: blobs
    that it has found good are not read again, unless they were put since. See :class:`.known_good.KnownGood`.

    Args:
        url: URL of the run.
        step: Number of a committed step. None: the newest.
        every: Whether all committed steps are verified.
        report: Gets the progress.
        storage_options: Options of the fsspec file system.

    Raises:
        ConfigError: There is no such step, or *step* and *every* are both given.
        IncompatibleCheckpointError: Newer software wrote a step.
        StoreError: The store does not answer.
    """
    if every and step is not None:
        raise ConfigError(f"step={step} and all steps cannot both be verified: give one of the two")
    store = open_run(url, storage_options)
    known = KnownGood(url, (step, every, (storage_options or {}).get("endpoint_url")))  # no option that is a secret
    found: list[VerifiedStep] = []
    for _ in range(1 if step is not None or every else MAX_TRIES):
        chosen = patiently(lambda: committed_steps(store)) if every else [choose_step(store, step)]
        verifier = _Verifier(store, known, report)
        found = [verifier.verify(each) for each in chosen]
        if not all(each.is_gone for each in found):
            break
    known.forget()
    result = Verification(
        steps=tuple(found),
        verified_at=SystemClock().utc().isoformat(timespec="seconds"),
        note_problem=None,
    )
    if result.is_good:
        try:
            patiently(lambda: store.put(VERIFIED_KEY, _note(result)))
        except StoreError as error:
            return Verification(steps=result.steps, verified_at=result.verified_at, note_problem=str(error))
    return result


def _note(result: Verification) -> bytes:
    good = [each for each in result.steps if not each.is_gone]
    return canonical_json(
        {
            "step": good[0].step_id.step,
            "attempt": good[0].step_id.attempt,
            "num_steps": len(good),
            "num_bytes": sum(each.num_bytes for each in good),
            "verified_at": result.verified_at,
        }
    )


class _Verifier:
    """Verifies steps one after the other. Frozen blobs, which many steps name, are read once."""

    def __init__(self, store: ObjectStore, known: KnownGood, report: Report) -> None:
        self._store = store
        self._known = known
        self._report = report
        self._room = Room()
        self._frozen: dict[NamedBlob, str | None] = {}

    def verify(self, committed: CommittedStep) -> VerifiedStep:
        """Verify one step."""
        step_id = committed.step_id
        manifests, damages = read_manifests(self._store, committed)
        if not damages and (damage := self._damage_of_copy(committed, manifests)) is not None:
            damages.append(damage)
        blobs = [each for each in blobs_of(manifests) if each not in self._frozen]
        self._frozen |= {each: None for each in blobs if each.blob.key.startswith(FROZEN_PREFIX)}
        there = self._settled(step_id, blobs)
        left = [each for each in blobs if not self._known.has(each, there.get(each.blob.key))]
        total = sum(each.blob.num_bytes for each in blobs)
        done = num_bytes_before = total - sum(each.blob.num_bytes for each in left)
        with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
            for each, reason in zip(left, pool.map(self._read, left), strict=True):
                if reason is None:
                    self._known.add(each, there.get(each.blob.key))
                elif each in self._frozen:
                    self._frozen[each] = reason
                else:
                    damages.append(Damage(step_id=step_id, key=each.blob.key, reason=reason))
                done += each.blob.num_bytes
                self._report(step_id.step, done, total)
        for each in blobs_of(manifests):
            if (reason := self._frozen.get(each)) is not None:
                damages.append(Damage(step_id=step_id, key=each.blob.key, reason=reason))
        # Pruning deletes all manifests before the first blob, so a step that misses a blob and is listed is damaged.
        is_gone = bool(damages) and committed not in patiently(lambda: committed_steps(self._store))
        return VerifiedStep(
            step_id=step_id,
            num_objects=len(manifests) + len(blobs),
            num_bytes=total,
            num_bytes_before=num_bytes_before,
            damages=() if is_gone else tuple(damages),
            is_gone=is_gone,
        )

    def _settled(self, step_id: StepId, blobs: list[NamedBlob]) -> Mapping[str, ObjectInfo]:
        """Return the objects of *blobs* by key, without those that were put just now."""
        listed_at = wall_time()
        prefixes = {FROZEN_PREFIX if each in self._frozen else step_id.prefix for each in blobs}
        listings = [patiently(partial(_objects, self._store, each)) for each in prefixes]
        return settled(chain.from_iterable(listings), listed_at)

    def _read(self, named: NamedBlob) -> str | None:
        with self._room.take(named.blob.num_bytes):
            found = read_blob(self._store, named)
            return found if isinstance(found, str) else None

    def _damage_of_copy(self, committed: CommittedStep, manifests: list[RankManifest]) -> Damage | None:
        """Compare the merged copy of the *manifests*, if there is one. Readers do without a damaged one."""
        key = merged_manifest_key(committed.step_id)
        try:
            merged = decode_merged(patiently(partial(get_at_most, self._store, key, MAX_MANIFEST_BYTES)))
        except KeyError:
            return None
        except ValueError as error:
            return Damage(step_id=committed.step_id, key=key, reason=f"is damaged: {error}")
        if merged == manifests:
            return None
        return Damage(step_id=committed.step_id, key=key, reason="is no copy of the manifests of the ranks")


def _objects(store: ObjectStore, prefix: str) -> list[ObjectInfo]:
    return list(store.objects(prefix))
