"""
Names of the objects of a run, as ``docs/format.md`` lists them.

Steps and attempts are zero-padded, so that the lexical order of a store is the numerical order.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

RUN_KEY: Final = "run.json"
VERIFIED_KEY: Final = "verified.json"
ATTEMPTS_PREFIX: Final = "attempts/"
STEPS_PREFIX: Final = "steps/"
FROZEN_PREFIX: Final = "frozen/"
KEEP_PREFIX: Final = "keep/"
PROBE_PREFIX: Final = "probe/"
EVENTS_PREFIX: Final = "events/"
COMPILED_PREFIX: Final = "compile-cache/"

_STEP_DIR = re.compile(r"steps/(\d{10,})-(\d{6,})/")
_RANK_MANIFEST = re.compile(r"steps/(\d{10,})-(\d{6,})/rank-(\d{5,})-of-(\d{5,})\.json")
_PREPARED = re.compile(r"steps/(\d{10,})-(\d{6,})/prepared-(\d{5,})-of-(\d{5,})\.json")
_ATTEMPT = re.compile(r"attempts/(\d{6,})\.json")
_BLOB = re.compile(r"steps/(\d{10,})-(\d{6,})/r(\d{5,})-b\d{4,}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{32}")
_KEEP = re.compile(r"keep/(\d{10,})-(\d{6,})/([a-z]+)\.json")
_SEGMENT = re.compile(r"events/([0-9]{6,12})-([0-9]{5,8})-([0-9]{6,12})\.jsonl")
_COMPILED = re.compile(r"compile-cache/([0-9]{5,8})/([0-9]{6,12})-([0-9a-f]{16})-([0-9a-f]{32})\.zip")


class StepId(NamedTuple):
    """
    One checkpoint: a step and the attempt that saved it. Sorted by step, then by attempt.

    Two attempts may save the same step. They share no objects, except frozen blobs.
    """

    step: int
    attempt: int

    @property
    def prefix(self) -> str:
        """The prefix of all keys of this checkpoint, with a trailing slash."""
        return f"{STEPS_PREFIX}{self.step:010d}-{self.attempt:06d}/"


class RankManifestKey(NamedTuple):
    """The fields of a key of a rank's manifest."""

    step_id: StepId
    rank: int
    world_size: int


class KeepKey(NamedTuple):
    """The fields of a key that marks a kept checkpoint."""

    step_id: StepId
    owner: str
    """The word for whoever keeps the checkpoint. It stays until every owner has released it."""


class SegmentKey(NamedTuple):
    """The fields of a key of a segment of the event log. Sorted by attempt, rank and number."""

    attempt: int
    rank: int
    number: int
    """Number of the segment, counted from 0."""

    @property
    def prefix(self) -> str:
        """The prefix of the keys of all segments of this attempt and rank."""
        return f"{EVENTS_PREFIX}{self.attempt:06d}-{self.rank:05d}-"

    @property
    def key(self) -> str:
        """The key."""
        return f"{self.prefix}{self.number:06d}.jsonl"


class CompiledKey(NamedTuple):
    """The fields of a key of compiled code. Those of a rank are sorted by attempt."""

    rank: int
    attempt: int
    surroundings: str
    """Hash of the software and the hardware that it is made for."""
    xxh3_128: str
    """Hash of the object."""

    @property
    def prefix(self) -> str:
        """The prefix of the keys of this rank."""
        return f"{COMPILED_PREFIX}{self.rank:05d}/"

    @property
    def key(self) -> str:
        """The key."""
        return f"{self.prefix}{self.attempt:06d}-{self.surroundings}-{self.xxh3_128}.zip"


def attempt_key(attempt: int) -> str:
    """Return the key that claims *attempt*."""
    return f"{ATTEMPTS_PREFIX}{attempt:06d}.json"


def parse_attempt_key(key: str) -> int | None:
    """Return the attempt that *key* claims, or None if *key* is not a claim."""
    match = _ATTEMPT.fullmatch(key)
    return int(match[1]) if match else None


def blob_key(step_id: StepId, rank: int, index: int) -> str:
    """Return the key of the *index*-th blob of *rank*."""
    return f"{step_id.prefix}r{rank:05d}-b{index:04d}.safetensors"


def frozen_key(xxh3_128: str) -> str:
    """Return the key of a blob that several steps share. It is named by the hash of its bytes."""
    return f"{FROZEN_PREFIX}{xxh3_128}.safetensors"


def is_blob_key(key: str, step_id: StepId, rank: int, xxh3_128: str) -> bool:
    """Return True if *rank* may store a blob of the hash *xxh3_128* for the step *step_id* under *key*."""
    match = _BLOB.fullmatch(key)
    is_own = match is not None and tuple(map(int, match.groups())) == (*step_id, rank)
    return _HASH.fullmatch(xxh3_128) is not None and (is_own or key == frozen_key(xxh3_128))


def rank_manifest_key(step_id: StepId, rank: int, world_size: int) -> str:
    """Return the key of the manifest of *rank* in a job of *world_size* ranks."""
    return f"{step_id.prefix}rank-{rank:05d}-of-{world_size:05d}.json"


def prepared_manifest_key(step_id: StepId, rank: int, world_size: int) -> str:
    """Return the key under which *rank* names its blobs before they are stored. It is no key of a manifest."""
    return f"{step_id.prefix}prepared-{rank:05d}-of-{world_size:05d}.json"


def merged_manifest_key(step_id: StepId) -> str:
    """Return the key of the copy of all manifests of a checkpoint."""
    return f"{step_id.prefix}merged.json"


def parse_step_id(key: str) -> StepId | None:
    """Return the checkpoint that the object *key* belongs to, or None if it belongs to none."""
    match = _STEP_DIR.match(key)
    return StepId(int(match[1]), int(match[2])) if match else None


def parse_rank_manifest_key(key: str) -> RankManifestKey | None:
    """Return the fields of *key*, or None if *key* does not name a rank's manifest."""
    return _of_rank(_RANK_MANIFEST.fullmatch(key))


def parse_prepared_manifest_key(key: str) -> RankManifestKey | None:
    """Return the fields of *key*, or None if *key* does not name a prepared manifest."""
    return _of_rank(_PREPARED.fullmatch(key))


def keep_key(step_id: StepId, owner: str) -> str:
    """Return the key by which *owner*, a word in small letters, marks a checkpoint as kept."""
    return f"{KEEP_PREFIX}{step_id.step:010d}-{step_id.attempt:06d}/{owner}.json"


def parse_keep_key(key: str) -> KeepKey | None:
    """Return the fields of *key*, or None if *key* does not mark a kept checkpoint."""
    match = _KEEP.fullmatch(key)
    return KeepKey(StepId(int(match[1]), int(match[2])), match[3]) if match else None


def parse_segment_key(key: str) -> SegmentKey | None:
    """Return the fields of *key*, or None if *key* does not name a segment of the event log."""
    match = _SEGMENT.fullmatch(key)
    return SegmentKey(*map(int, match.groups())) if match else None


def parse_compiled_key(key: str) -> CompiledKey | None:
    """Return the fields of *key*, or None if *key* does not name compiled code."""
    match = _COMPILED.fullmatch(key)
    return CompiledKey(int(match[1]), int(match[2]), match[3], match[4]) if match else None


def _of_rank(match: re.Match[str] | None) -> RankManifestKey | None:
    if match is None:
        return None
    return RankManifestKey(StepId(int(match[1]), int(match[2])), int(match[3]), int(match[4]))
