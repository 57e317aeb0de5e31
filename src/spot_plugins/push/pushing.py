"""The way of one staged step: hash, local disk, store, commit, prune. Runs in the pusher process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import Final, TypeVar

from .. import events
from ..commit import commit
from ..errors import SpotError, StoreError, SupersededError
from ..events import Event
from ..keys import STEPS_PREFIX, StepId, parse_rank_manifest_key, parse_step_id, rank_manifest_key
from ..manifest import RankManifest
from ..retention import prune, removal_groups
from ..store import ObjectStore
from .messages import PushJob, PushSettings
from .speed import Speed

NUM_PUTS: Final = 8  # puts in flight; S3 gives about 100 MB/s per connection
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0
LOCAL_STEPS: Final = 2  # the newest may still be incomplete on another rank, so the one before stays

_T = TypeVar("_T")


class StepPush:
    """
    Pushes one job. :meth:`run` returns when the step is committed or will never be.

    While the store fails it tries again, with growing pauses, until a newer step waits behind it: then the
    newer one is worth more, and this one is abandoned.
    """

    def __init__(
        self,
        job: PushJob,
        settings: PushSettings,
        memory: memoryview,
        *,
        store: ObjectStore,
        local: ObjectStore | None,
        tell: Callable[[Event], None],
        disk_speed: Speed,
        put_speed: Speed,
    ) -> None:
        """
        Make ready; nothing is pushed before :meth:`run`.

        Args:
            job: What to push; its blobs lie in *memory*.
            settings: Whose step it is.
            memory: The shared buffer.
            store: Where the step is committed.
            local: The local disk's store, or None for no local copy.
            tell: Called with every event, on the thread of :meth:`run`.
            disk_speed: Takes in how fast blobs go to *local*.
            put_speed: Takes in how fast blobs go to *store*.
        """
        self._job = job
        self._settings = settings
        self._store = store
        self._local = local
        self._images = [memory[blob.offset : blob.offset + blob.num_bytes] for blob in job.blobs]
        self._tell = tell
        self._disk_speed = disk_speed
        self._put_speed = put_speed
        self._started = time.monotonic()
        self.committed = False
        """Whether this rank's part is stored."""
        self._interrupt = threading.Event()
        self._reason = ""

    def give_up(self, reason: str) -> None:
        """Stop trying once the store fails, because of *reason*. Called from another thread."""
        self._reason = reason
        self._interrupt.set()

    def run(self) -> None:
        """Push. Never raises: what goes wrong is an event."""
        try:
            manifest = self._job.manifest(self._settings, self._images)
            if not (self._job.again and self._retry(lambda: self._is_stored(manifest))):
                self._write_locally(manifest)
                self._store_remotely(manifest)
            self.committed = True
            self._tell(
                events.Committed(
                    step=self._job.step,
                    num_bytes=manifest.num_bytes,
                    push_s=time.monotonic() - self._started,
                    put_bytes_per_s=self._put_speed.bytes_per_s,
                )
            )
            if self._settings.rank == 0:
                self._prune()
        except SupersededError as error:
            self._tell(events.Superseded(attempt=error.attempt, newest=error.newest))
            self._abandon(str(error))
        except SpotError as error:
            self._abandon(str(error))
        except Exception as error:  # noqa: BLE001 - a bug must not end the pusher: the next step may be saved
            self._abandon(f"unexpected {error!r}")

    def _abandon(self, reason: str) -> None:
        self._tell(events.SaveAbandoned(step=self._job.step, reason=reason))

    def _write_locally(self, manifest: RankManifest) -> None:
        if (local := self._local) is None:
            return
        try:
            started = time.monotonic()
            for blob, image in zip(manifest.blobs, self._images, strict=True):
                local.put(blob.key, image)
            self._disk_speed.record(manifest.num_bytes, time.monotonic() - started)
            local.put(rank_manifest_key(manifest.step_id, manifest.rank, manifest.world_size), manifest.encode())
        except StoreError as error:
            self._tell(events.LocalWriteFailed(step=self._job.step, reason=str(error)))
            # The disk may be full, and others need it too. Without one older copy the next one may fit.
            self._prune_locally(local, LOCAL_STEPS - 1, half_written=manifest.step_id)
            return
        self._tell(
            events.WrittenLocally(
                step=self._job.step,
                num_bytes=manifest.num_bytes,
                write_s=time.monotonic() - self._started,
                write_bytes_per_s=self._disk_speed.bytes_per_s,
            )
        )
        self._prune_locally(local, LOCAL_STEPS)

    def _prune_locally(self, local: ObjectStore, num_kept: int, half_written: StepId | None = None) -> None:
        """Remove this rank's older copies, and *half_written*; other ranks of the machine see to their own."""
        with suppress(StoreError):  # a copy too many is no failure; the next save tries again
            mine: dict[StepId, list[str]] = {}
            for key in local.keys(STEPS_PREFIX):
                if (step_id := parse_step_id(key)) is not None and _rank_of(key) == self._settings.rank:
                    mine.setdefault(step_id, []).append(key)
            # The newest of the newest attempt, which may have fallen back behind steps of an older one.
            whole = sorted(mine.keys() - {half_written}, key=lambda step_id: (step_id.attempt, step_id.step))
            for step_id in [*whole[:-num_kept], *(mine.keys() & {half_written})]:
                for key in chain(*removal_groups(mine[step_id])):
                    local.delete(key)

    def _store_remotely(self, manifest: RankManifest) -> None:
        with ThreadPoolExecutor(NUM_PUTS, thread_name_prefix="spot-put") as pool:
            unstored = dict(zip((blob.key for blob in manifest.blobs), self._images, strict=True))
            self._retry(lambda: self._put_blobs(pool, unstored))
        self._retry(lambda: commit(manifest, self._store))

    def _is_stored(self, manifest: RankManifest) -> bool:
        """Return whether this rank's part of the step is committed. Then no object of it may be written again."""
        key = rank_manifest_key(manifest.step_id, manifest.rank, manifest.world_size)
        return key in self._store.keys(key)

    def _put_blobs(self, pool: ThreadPoolExecutor, unstored: dict[str, memoryview]) -> None:
        """Put what is still missing; what got through is not put again."""
        started = time.monotonic()
        num_bytes = sum(len(image) for image in unstored.values())
        puts = {key: pool.submit(self._store.put, key, image) for key, image in unstored.items()}
        failure: StoreError | None = None
        for key, put in puts.items():
            try:
                put.result()
                del unstored[key]
            except StoreError as error:
                failure = error
        if failure is not None:
            raise failure
        self._put_speed.record(num_bytes, time.monotonic() - started)

    def _retry(self, action: Callable[[], _T]) -> _T:
        pause_s = FIRST_PAUSE_S
        num_tries = 0
        while True:
            try:
                return action()
            except StoreError as error:
                num_tries += 1
                self._tell(events.PushFailing(step=self._job.step, num_tries=num_tries, reason=str(error)))
                # Even a "permanent" refusal is tried again: credentials get renewed, quotas get raised.
                if self._interrupt.wait(pause_s * random.uniform(0.5, 1.0)):
                    raise StoreError(error.operation, error.key, f"{error.reason}; {self._reason}") from error
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _prune(self) -> None:
        settings = self._settings
        try:
            removed = prune(self._store, settings.attempt, keep_last=settings.keep_last, keep_every=settings.keep_every)
        except SupersededError as error:  # since the commit: the step stays committed
            self._tell(events.Superseded(attempt=error.attempt, newest=error.newest))
            return
        except StoreError:
            return  # old checkpoints cost money, not work; the next commit tries again
        for step_id in removed:
            self._tell(events.Pruned(step=step_id.step, attempt=step_id.attempt))


def _rank_of(key: str) -> int | None:
    """Return the rank that wrote the blob or manifest *key*."""
    if (manifest := parse_rank_manifest_key(key)) is not None:
        return manifest.rank
    name = key.rpartition("/")[2]
    return int(name[1:6]) if name[:1] == "r" and name[1:6].isdigit() else None
