"""Push of one staged step: hash, local disk, store, commit, prune. Runs in the pusher process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from .. import events
from ..errors import SpotError, StoreError, SupersededError
from ..eventlog.pusher_log import PusherLog
from ..events import EventBus
from ..format.attempts import check_newest
from ..format.commit import commit, withdraw_if_pruned
from ..format.keys import FROZEN_PREFIX, StepId, prepared_manifest_key, rank_manifest_key
from ..format.manifest import ManifestError, RankManifest
from ..store import ObjectStore
from .frozen_watch import damage_of
from .keeping import Marks, prune_old
from .local_write import Disk, LocalWrite
from .messages import PushJob, PushSettings, SealedBlob
from .seals import Seals
from .shared_file import FileWriter
from .speed import Speed

NUM_SEALS: Final = 2  # threads that hash; one hashes faster than most disks write
NUM_PUTS: Final = 8  # puts in flight; S3 gives about 100 MB/s per connection
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0
SPARE_S: Final = 10.0
"""Least time that the local disk gets after the store has the step. It gets as long again as the push has taken."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ways:
    """Destinations of the steps of one rank, and the speeds of the ways there."""

    store: ObjectStore
    """The store in which steps are committed."""
    disk: Disk | None = None
    """The local disk, or None for no local copies."""
    speed: Speed = field(default_factory=Speed)
    """The speed of the way to the store."""
    lower_priority: Callable[[], None] = lambda: None
    """Called on each thread that hashes or puts."""
    damaged: set[str] = field(default_factory=set)
    """Keys of frozen blobs that the store had, and has not or not intact."""
    marks: Marks | None = None
    """The marks of kept steps that are still to be put. None if there never are any."""
    log: PusherLog | None = None
    """The event log. None if there is none."""
    file: FileWriter = field(default_factory=FileWriter)
    """The file on the local disk that the trainer writes as memory."""


class StepPush:
    """
    Pushes one job. :meth:`run` returns when the step is committed or will never be.

    If the store fails, the push tries again after growing pauses. As soon as a newer step waits, the newer one is worth
    more, and this one is abandoned.
    """

    def __init__(
        self,
        job: PushJob,
        settings: PushSettings,
        images: list[memoryview],
        *,
        ways: Ways,
        bus: EventBus,
        frozen: list[SealedBlob] | None = None,
    ) -> None:
        """
        Prepare the push. Nothing is pushed before :meth:`run`.

        Args:
            job: The step.
            settings: The settings of its rank.
            images: The bytes of its blobs.
            ways: The destinations. Their speeds are measured.
            bus: Gets the events.
            frozen: Blobs that were stored before and belong to this step too.
        """
        self._job = job
        self._settings = settings
        self._ways = ways
        self._seals = Seals(job, settings, images, frozen or [])
        self.frozen: list[SealedBlob] = []
        """The frozen blobs of this job, with their hashes. Complete once the step is committed."""
        self._bus = bus
        self.is_committed = False
        """True if this rank's part is stored."""
        self._interrupt = threading.Event()
        self._reason = ""
        self._write: LocalWrite | None = None
        self._is_freed = False
        self._is_prepared = False

    def give_up(self, reason: str) -> None:
        """Stop trying once the store fails, because of *reason*. Called from another thread."""
        self._reason = reason
        self._interrupt.set()
        self.free()

    def free(self) -> None:
        """Do not wait for the local disk once the store has the step. Called from another thread."""
        self._is_freed = True
        if (write := self._write) is not None:
            write.free()

    def run(self) -> None:
        """Push. Never raises, because every failure is an event."""
        started = time.monotonic()
        try:
            num_bytes = 0
            if not (self._job.again and self._retry(self._is_stored)):
                num_bytes = self._push()
            self.is_committed = True
            self._bus.emit(
                events.Committed(
                    step=self._job.step,
                    num_bytes=num_bytes,
                    push_s=time.monotonic() - started,
                    put_bytes_per_s=self._ways.speed.bytes_per_s,
                )
            )
            if self._settings.rank == 0:
                self._prune()
        except SupersededError as error:
            self._bus.emit(events.Superseded(attempt=error.attempt, newest=error.newest))
            self._abandon(str(error))
        except SpotError as error:
            self._abandon(str(error))
        except Exception as error:  # noqa: BLE001 - a bug must not end the pusher: the next step may be saved
            self._abandon(f"unexpected {error!r}")
        finally:
            if self._write is not None:
                self._write.finish(max(time.monotonic() - started, SPARE_S) if self.is_committed else None)

    def _abandon(self, reason: str) -> None:
        self._bus.emit(events.SaveAbandoned(step=self._job.step, reason=reason))

    def _push(self) -> int:
        """Hash the blobs. Write them to the disk and put them to the store, side by side. Return the bytes put."""
        with ThreadPoolExecutor(NUM_SEALS, "spot-seal", self._ways.lower_priority) as pool:
            self._seals.begin(pool)
            if self._ways.disk is not None:
                self._write = write = LocalWrite(self._seals, self._settings, self._ways.disk, self._bus)
                if self._is_freed:
                    write.free()
            return self._store_remotely()

    def _store_remotely(self) -> int:
        """Put the blobs that are not stored, and commit. Return the bytes of these blobs."""
        unstored = dict(enumerate(self._seals.images))
        damages = self._skip_stored(unstored)
        num_bytes = sum(map(len, unstored.values()))
        with ThreadPoolExecutor(NUM_PUTS, "spot-put", self._ways.lower_priority) as pool:
            self._retry(lambda: self._put_blobs(pool, unstored))
        self._ways.damaged.difference_update(damages)
        for key, reason in damages.items():
            self._bus.emit(events.StoreDamaged(key=key, reason=reason, is_repaired=True))
        self._commit(self._seals.manifest())
        return num_bytes

    def _commit(self, manifest: RankManifest) -> None:
        self._retry(lambda: commit(manifest, self._ways.store))
        with suppress(StoreError):  # the step is committed; the newer attempt, if there is one, removes what is left
            withdraw_if_pruned(manifest, self._ways.store)

    def _skip_stored(self, unstored: dict[int, memoryview]) -> dict[str, str]:
        """Remove the frozen blobs that the store has from *unstored*. Return the damage of the others, by key."""
        damages: dict[str, str] = {}
        if frozen := self._seals.frozen:
            self.frozen = [*frozen.values()]
            there = set(self._retry(lambda: list(self._ways.store.keys(FROZEN_PREFIX))))
            for index, each in frozen.items():
                key = each.blob.key
                if key in self._ways.damaged:
                    damages[key] = "was missing or damaged"
                elif key not in there:
                    continue
                elif (damage := self._retry(partial(damage_of, self._ways.store, each))) is not None:
                    damages[key] = damage
                else:
                    del unstored[index]
        return damages

    def _is_stored(self) -> bool:
        """Return whether this rank's part of the step is committed. Then no object of it may be written again."""
        settings = self._settings
        step_id = StepId(self._job.step, settings.attempt)
        return _has(self._ways.store, rank_manifest_key(step_id, settings.rank, settings.world_size))

    def _put_blobs(self, pool: ThreadPoolExecutor, unstored: dict[int, memoryview]) -> None:
        """Put the blobs that are still missing, by index. A blob that was put is not put again."""
        started = time.monotonic()
        num_bytes = sum(len(image) for image in unstored.values())
        own = {index: pool.submit(self._put, index, unstored[index]) for index in self._seals.own if index in unstored}
        if self._job.is_prepared and not self._is_prepared:
            pool.submit(self._prepare, [*own.values()])  # it waits for puts that have begun before it
        puts = own | {
            index: pool.submit(self._put, index, each) for index, each in unstored.items() if index not in own
        }
        failure: StoreError | None = None
        for index, put in puts.items():
            try:
                # wait: until the client of the store gives up; the put is tried again
                put.result()
                del unstored[index]
            except StoreError as error:
                failure = error
        if failure is not None:
            raise failure
        self._ways.speed.record(num_bytes, time.monotonic() - started)

    def _prepare(self, own: list[Future[None]]) -> None:
        """Put the prepared manifest after the blobs of the rank's *own*. A failure takes nothing but a precaution."""
        settings = self._settings
        with suppress(SpotError, ManifestError):
            check_newest(self._ways.store, settings.attempt)
            for put in own:
                # wait: until the client of the store gives up; there is no prepared manifest before the next try
                put.result()
            key = prepared_manifest_key(self._seals.step_id, settings.rank, settings.world_size)
            self._ways.store.put(key, self._seals.manifest().encode())
            self._is_prepared = True

    def _put(self, index: int, image: memoryview) -> None:
        self._ways.store.put(self._seals[index].blob.key, image)

    def _retry(self, action: Callable[[], _T]) -> _T:
        pause_s = FIRST_PAUSE_S
        num_tries = 0
        while True:
            try:
                return action()
            except StoreError as error:
                num_tries += 1
                self._bus.emit(events.PushFailing(step=self._job.step, num_tries=num_tries, reason=str(error)))
                # Even a "permanent" refusal is tried again: credentials get renewed, quotas get raised.
                # wait: LONGEST_PAUSE_S; the request is tried again
                if self._interrupt.wait(pause_s * random.uniform(0.5, 1.0)):
                    raise StoreError(error.operation, error.key, f"{error.reason}; {self._reason}") from error
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _prune(self) -> None:
        with suppress(StoreError):  # old checkpoints cost money, not work; the next commit or the end tries again
            prune_old(self._ways.store, self._ways.marks, self._settings, self._bus)


def _has(store: ObjectStore, key: str) -> bool:
    return key in store.keys(key)
