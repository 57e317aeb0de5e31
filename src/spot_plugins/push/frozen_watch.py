"""Frozen blobs, which many steps name and one has stored: whether the store still has them. In the pusher process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from .. import events
from ..errors import GONE, StoreError
from ..events import EventBus
from ..format.attempts import check_newest
from ..format.commit import committed_steps, read_manifest
from ..format.keys import frozen_key
from ..format.manifest import RankManifest, is_intact
from ..store import ObjectStore, get_at_most
from .messages import PushSettings, SealedBlob, StoredFrozen

LOOK_S: Final = 600.0
"""Pause between two looks. A look sends one small request per blob of 64 MiB, and reads one blob whole."""

NUM_GETS: Final = 4


class FrozenWatch:
    """
    Looks at the frozen blobs of one rank at the start of a session, and now and then until it ends.

    Each look compares the size of every blob, and the bytes of one, in turn. A blob that is missing or damaged is put
    again from the local disk. If the disk has no intact copy, the event lets the next save bring the blobs.

    Args:
        store: The store of the run.
        local: The store on the local disk, or None.
        settings: The settings of the rank.
        bus: Gets the events.
    """

    def __init__(
        self,
        store: ObjectStore,
        local: ObjectStore | None,
        settings: PushSettings,
        bus: EventBus,
    ) -> None:
        self._store = store
        self._local = local
        self._settings = settings
        self._bus = bus
        self._turn = 0
        self._found: tuple[SealedBlob, ...] = ()
        self.frozen = StoredFrozen(0, ())
        """The newest set that this attempt has stored. Number 0: none yet, so that of an earlier attempt counts."""
        self.damaged: set[str] = set()
        """Keys of blobs that the store has not or not intact, and that no local copy could repair."""

    def start(self, lower_priority: Callable[[], None]) -> None:
        """Begin to look, on a thread that ends with the process. The thread calls *lower_priority* first."""
        threading.Thread(target=self._run, args=(lower_priority,), name="spot-look", daemon=True).start()

    def look(self) -> None:
        """Look at all blobs once. Raises :exc:`SpotError` if the store fails or a newer attempt runs."""
        blobs = self.frozen.blobs or self._found
        whole = self._turn % len(blobs) if blobs else 0
        self._turn += 1
        with ThreadPoolExecutor(NUM_GETS, "spot-look") as pool:
            found = pool.map(
                lambda index: damage_of(self._store, blobs[index], reads_all=index == whole), range(len(blobs))
            )
            damages = [(each, reason) for each, reason in zip(blobs, found, strict=True) if reason is not None]
        for each, reason in damages:
            key, is_repaired = each.blob.key, self._repair(each)
            is_new = is_repaired or key not in self.damaged
            # Noted before it is told, because the trainer answers with a save, which puts what is noted alone.
            (self.damaged.discard if is_repaired else self.damaged.add)(key)
            if is_new:
                self._bus.emit(events.StoreDamaged(key=key, reason=reason, is_repaired=is_repaired))

    def find(self) -> None:
        """Look at the blobs that the newest committed step names, until this attempt has stored others."""
        steps = committed_steps(self._store)
        found: dict[str, SealedBlob] = {}
        for rank in range(self._settings.rank, steps[0].world_size if steps else 0, self._settings.world_size):
            manifest = read_manifest(self._store, steps[0].step_id, rank, steps[0].world_size)
            found |= {each.blob.key: each for each in _frozen_in(manifest)}
        self._found = tuple(found.values())

    def _run(self, lower_priority: Callable[[], None]) -> None:
        lower_priority()
        with suppress(Exception):  # the resume finds out what is wrong with the newest step
            self.find()
        while True:
            with suppress(Exception):  # the store does not answer, or a newer attempt runs
                self.look()
            # wait: LOOK_S; a thread of its own, which ends with the process
            time.sleep(LOOK_S)

    def _repair(self, sealed: SealedBlob) -> bool:
        """Put the local copy of a blob, if that is intact. Return whether it was put."""
        if self._local is None:
            return False
        key = sealed.blob.key
        try:
            data = get_at_most(self._local, key, sealed.blob.num_bytes)
        except (KeyError, ValueError, StoreError):
            return False
        if not is_intact(memoryview(data), sealed.blob, sealed.tensors):
            return False
        check_newest(self._store, self._settings.attempt)
        self._store.put(key, data)
        return True


def damage_of(store: ObjectStore, sealed: SealedBlob, *, reads_all: bool = False) -> str | None:
    """
    Compare a blob in *store* with its size, and with its hashes if *reads_all*. Return what is wrong with it, or None.

    Raises:
        StoreError: The store does not answer.
    """
    key, num_bytes = sealed.blob.key, sealed.blob.num_bytes
    try:
        count = store.get_into(key, max(0, num_bytes - 1), [memoryview(bytearray(2))])
        if count != 1:
            return f"has {'more' if count else 'less'} than {num_bytes} bytes"
        if reads_all and not is_intact(memoryview(store.get(key)), sealed.blob, sealed.tensors):
            return "has changed: its hash differs"
    except KeyError:
        return GONE
    return None


def _frozen_in(manifest: RankManifest) -> Iterable[SealedBlob]:
    for blob, inside in zip(manifest.blobs, manifest.slices_by_blob(), strict=True):
        if blob.key == frozen_key(blob.xxh3_128):
            yield SealedBlob(blob, tuple(inside))
