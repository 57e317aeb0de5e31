"""The blobs of a step, each read whole and verified, in bounded memory."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from ..errors import GONE, CorruptCheckpointError
from ..format.commit import NUM_GETS, CommittedStep
from ..format.keys import StepId
from ..format.manifest import Blob, RankManifest, TensorSlice, is_intact
from ..resume.manifests import manifest_of
from ..resume.plausible import UNCHECKED_BYTES, find_nonsense
from ..store import ObjectStore, patiently

ROOM_BYTES: Final = 512 * 1024**2
"""Most bytes of blobs in memory at a time. A larger blob is read alone."""


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob, and the slices in it as each manifest that names it lists them."""

    blob: Blob
    insides: frozenset[tuple[TensorSlice, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A stored object that is not as it was written."""

    step_id: StepId
    key: str
    reason: str


class Room:
    """
    Memory that several threads share.

    Args:
        num_bytes: Most bytes that are taken at a time. Whoever needs more waits until nobody else has any.
    """

    def __init__(self, num_bytes: int = ROOM_BYTES) -> None:
        self._num_bytes = num_bytes
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Take *num_bytes* for the time of the ``with`` block."""
        with self._changed:
            # wait: until another thread has read or written its blob, which the client of the store limits; it is taken
            self._changed.wait_for(lambda: not self._taken or self._taken + num_bytes <= self._num_bytes)
            self._taken += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= num_bytes
                self._changed.notify_all()


def read_manifests(store: ObjectStore, committed: CommittedStep) -> tuple[list[RankManifest], list[Damage]]:
    """
    Read the manifest of each rank from its own object, and check that together they make sense.

    Raises:
        IncompatibleCheckpointError: Newer software wrote the step.
        StoreError: The store does not answer.
    """
    step_id = committed.step_id

    def read(rank: int) -> RankManifest | Damage:
        try:
            return manifest_of(store, committed, rank)
        except CorruptCheckpointError as error:
            return Damage(step_id=step_id, key=error.key, reason=error.reason)

    with ThreadPoolExecutor(NUM_GETS, thread_name_prefix="spot-get") as pool:
        found = list(pool.map(read, range(committed.world_size)))
    manifests = [each for each in found if isinstance(each, RankManifest)]
    damages = [each for each in found if isinstance(each, Damage)]
    nonsense = find_nonsense(
        ((manifest, piece) for manifest in manifests for piece in manifest.tensors), complete=not damages
    )
    if nonsense is not None:
        damages.append(Damage(step_id=step_id, key=step_id.prefix, reason=f"makes no sense: {nonsense}"))
    return manifests, damages


def whole_manifests(store: ObjectStore, committed: CommittedStep) -> list[RankManifest]:
    """
    Read the manifests of all ranks.

    Raises:
        CorruptCheckpointError: One is damaged or missing, or together they make no sense.
        IncompatibleCheckpointError, StoreError: As for :func:`read_manifests`.
    """
    manifests, damages = read_manifests(store, committed)
    if damages:
        raise CorruptCheckpointError(committed.step_id.step, damages[0].key, damages[0].reason)
    return manifests


def blobs_of(manifests: Sequence[RankManifest]) -> list[NamedBlob]:
    """Return the blobs that *manifests* name, each once, in the order of their keys."""
    insides: defaultdict[Blob, set[tuple[TensorSlice, ...]]] = defaultdict(set)
    for manifest in manifests:
        for index, inside in enumerate(manifest.slices_by_blob()):
            # Ranks number a blob that they share differently, and two numbers are no difference between its slices.
            insides[manifest.blobs[index]].add(tuple(_unnumbered(piece) for piece in inside))
    found = [NamedBlob(blob, frozenset(lists)) for blob, lists in insides.items()]
    return sorted(found, key=lambda each: each.blob.key)


def read_blob(store: ObjectStore, named: NamedBlob) -> memoryview | str:
    """
    Read a blob and compare all of its hashes.

    Returns:
        The bytes, or what is wrong with them.

    Raises:
        StoreError: The store does not answer.
    """
    key, num_bytes = named.blob.key, named.blob.num_bytes
    try:
        if num_bytes > UNCHECKED_BYTES and not patiently(partial(_has_byte, store, key, num_bytes - 1)):
            return f"has less than {num_bytes} bytes"
        image = memoryview(bytearray(num_bytes + 1))
        count = patiently(lambda: store.get_into(key, 0, [image]))
    except KeyError:
        return GONE
    if count != num_bytes:
        return f"has {count if count < num_bytes else 'more'} bytes instead of {num_bytes}"
    image = image[:num_bytes]
    if all(is_intact(image, named.blob, inside) for inside in named.insides):
        return image
    return "has changed since it was written: its hash differs"


def _has_byte(store: ObjectStore, key: str, position: int) -> bool:
    return store.get_into(key, position, [memoryview(bytearray(1))]) == 1


def _unnumbered(piece: TensorSlice) -> TensorSlice:
    return replace(piece, blob=0)
