"""Push of one staged step: hash, local disk, store, commit, prune. Runs in the pusher process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeVar

from .. import events
from ..errors import SpotError, StoreError, SupersededError
from ..events import EventBus
from ..format.commit import commit
from ..format.keys import FROZEN_PREFIX, STEPS_PREFIX, StepId, parse_rank_manifest_key, parse_step_id, rank_manifest_key
from ..format.manifest import RankManifest, TensorSlice
from ..format.retention import prune, removal_groups
from ..store import ObjectStore
from .keeping import Marks
from .messages import PushJob, PushSettings, SealedBlob, manifest_of, seal
from .speed import Meters

NUM_WRITES: Final = 2  # one to the disk, one being hashed
NUM_PUTS: Final = 8  # puts in flight; S3 gives about 100 MB/s per connection
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0
LOCAL_STEPS: Final = 2  # the newest may still be incomplete on another rank, so the one before stays

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ways:
    """Destinations of the steps of one rank, and the speeds of the ways there."""

    store: ObjectStore
    """The store in which steps are committed."""
    local: ObjectStore | None = None
    """The store on the local disk, or None for no local copies."""
    meters: Meters = field(default_factory=Meters)
    marks: Marks | None = None
    """The marks of kept steps that are still to be put. None if there never are any."""


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
        lower_priority: Callable[[], None] = lambda: None,
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
            lower_priority: Called on each thread that does the work.
        """
        self._job = job
        self._settings = settings
        self._ways = ways
        self._images = images
        self._stored_before = frozen or []
        self._lower_priority = lower_priority
        self.frozen: list[SealedBlob] = []
        """The frozen blobs of this job, with their hashes. Complete once the step is committed."""
        self._bus = bus
        self._started = time.monotonic()
        self.is_committed = False
        """True if this rank's part is stored."""
        self._interrupt = threading.Event()
        self._reason = ""

    def give_up(self, reason: str) -> None:
        """Stop trying once the store fails, because of *reason*. Called from another thread."""
        self._reason = reason
        self._interrupt.set()

    def run(self) -> None:
        """Push. Never raises, because every failure is an event."""
        try:
            num_bytes = 0
            if not (self._job.again and self._retry(self._is_stored)):
                manifest = self._seal_and_write()
                num_bytes = self._store_remotely(manifest)
            self.is_committed = True
            self._bus.emit(
                events.Committed(
                    step=self._job.step,
                    num_bytes=num_bytes,
                    push_s=time.monotonic() - self._started,
                    put_bytes_per_s=self._ways.meters.store.bytes_per_s,
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

    def _abandon(self, reason: str) -> None:
        self._bus.emit(events.SaveAbandoned(step=self._job.step, reason=reason))

    def _seal_and_write(self) -> RankManifest:
        """Hash all blobs and write them to the local disk, one while another is hashed. Return the manifest."""
        started = time.monotonic()
        slices: list[list[TensorSlice]] = [[] for _ in self._images]
        for piece in self._job.tensors:
            slices[piece.blob].append(piece)
        with ThreadPoolExecutor(NUM_WRITES, "spot-write", self._lower_priority) as pool:
            results = list(pool.map(self._seal_and_write_blob, range(len(self._images)), slices))
        sealed = [each for each, _ in results]
        self.frozen = [each for each, image in zip(sealed, self._job.blobs, strict=True) if image.is_frozen]
        manifest = manifest_of(self._job, sealed + self._stored_before, self._settings)
        if (local := self._ways.local) is not None:
            error = next((error for _, error in results if error is not None), None)
            try:
                if error is not None:
                    raise error
                self._ways.meters.disk.record(sum(map(len, self._images)), time.monotonic() - started)
                local.put(rank_manifest_key(manifest.step_id, manifest.rank, manifest.world_size), manifest.encode())
            except StoreError as failure:
                self._bus.emit(events.LocalWriteFailed(step=self._job.step, reason=str(failure)))
                # The disk may be full, and other programs need it too. Without one older copy the next one may fit.
                self._prune_locally(local, LOCAL_STEPS - 1, half_written=manifest.step_id)
            else:
                self._bus.emit(
                    events.WrittenLocally(
                        step=self._job.step,
                        num_bytes=sum(map(len, self._images)),
                        write_s=time.monotonic() - self._started,
                        write_bytes_per_s=self._ways.meters.disk.bytes_per_s,
                    )
                )
                self._prune_locally(local, LOCAL_STEPS)
        return manifest

    def _seal_and_write_blob(self, index: int, slices: list[TensorSlice]) -> tuple[SealedBlob, StoreError | None]:
        image = self._images[index]
        sealed = seal(self._job, index, image, slices, self._settings)
        if (local := self._ways.local) is not None:
            try:
                if not (self._job.blobs[index].is_frozen and _has(local, sealed.blob.key)):
                    local.put(sealed.blob.key, image)
            except StoreError as error:
                return sealed, error
        return sealed, None

    def _prune_locally(self, local: ObjectStore, num_kept: int, half_written: StepId | None = None) -> None:
        """Remove this rank's older copies, and *half_written*. Other ranks of the machine remove their own."""
        with suppress(StoreError):  # one copy too many is no failure, and the next save tries again
            mine: dict[StepId, list[str]] = {}
            for key in local.keys(STEPS_PREFIX):
                if (step_id := parse_step_id(key)) is not None and self._removes_for(_rank_of(key)):
                    mine.setdefault(step_id, []).append(key)
            # The newest attempt counts first: it may have resumed before steps of an older attempt.
            whole = sorted(mine.keys() - {half_written}, key=lambda step_id: (step_id.attempt, step_id.step))
            for step_id in [*whole[:-num_kept], *(mine.keys() & {half_written})]:
                for key in chain(*removal_groups(mine[step_id])):
                    local.delete(key)

    def _removes_for(self, rank: int | None) -> bool:
        """Return whether this rank removes the local copies of *rank*, which the job may no longer have."""
        return rank is not None and rank % self._settings.world_size == self._settings.rank

    def _store_remotely(self, manifest: RankManifest) -> int:
        """Put the blobs that are not stored, and commit. Return the bytes of these blobs."""
        unstored = {blob.key: image for blob, image in zip(manifest.blobs, self._images, strict=False)}
        if self.frozen:
            there = set(self._retry(lambda: list(self._ways.store.keys(FROZEN_PREFIX))))
            unstored = {key: image for key, image in unstored.items() if key not in there}
        num_bytes = sum(map(len, unstored.values()))
        with ThreadPoolExecutor(NUM_PUTS, "spot-put", self._lower_priority) as pool:
            self._retry(lambda: self._put_blobs(pool, unstored))
        self._retry(lambda: commit(manifest, self._ways.store))
        return num_bytes

    def _is_stored(self) -> bool:
        """Return whether this rank's part of the step is committed. Then no object of it may be written again."""
        settings = self._settings
        step_id = StepId(self._job.step, settings.attempt)
        return _has(self._ways.store, rank_manifest_key(step_id, settings.rank, settings.world_size))

    def _put_blobs(self, pool: ThreadPoolExecutor, unstored: dict[str, memoryview]) -> None:
        """Put the blobs that are still missing. A blob that was put is not put again."""
        started = time.monotonic()
        num_bytes = sum(len(image) for image in unstored.values())
        puts = {key: pool.submit(self._ways.store.put, key, image) for key, image in unstored.items()}
        failure: StoreError | None = None
        for key, put in puts.items():
            try:
                # wait: until the client of the store gives up; the put is tried again
                put.result()
                del unstored[key]
            except StoreError as error:
                failure = error
        if failure is not None:
            raise failure
        self._ways.meters.store.record(num_bytes, time.monotonic() - started)

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
        settings = self._settings
        try:
            removed = prune(
                self._ways.store,
                settings.attempt,
                keep_last=settings.keep_last,
                keep_every=settings.keep_every,
                protected=frozenset() if (marks := self._ways.marks) is None else marks.protected,
            )
        except SupersededError as error:  # since the commit: the step stays committed
            self._bus.emit(events.Superseded(attempt=error.attempt, newest=error.newest))
            return
        except StoreError:
            return  # old checkpoints cost money, not work; the next commit tries again
        for step_id in removed:
            self._bus.emit(events.Pruned(step=step_id.step, attempt=step_id.attempt))


def _has(store: ObjectStore, key: str) -> bool:
    return key in store.keys(key)


def _rank_of(key: str) -> int | None:
    """Return the rank that wrote the blob or manifest *key*."""
    if (manifest := parse_rank_manifest_key(key)) is not None:
        return manifest.rank
    name = key.rpartition("/")[2]
    return int(name[1:6]) if name[:1] == "r" and name[1:6].isdigit() else None
