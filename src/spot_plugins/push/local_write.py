"""The write of a step to the local disk, beside its push to the store. Runs in the pusher process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import chain
from typing import Final

from .. import events
from ..errors import StoreError
from ..events import EventBus
from ..format.keys import (
    ATTEMPTS_PREFIX,
    EVENTS_PREFIX,
    FROZEN_PREFIX,
    STEPS_PREFIX,
    StepId,
    parse_rank_manifest_key,
    parse_segment_key,
    parse_step_id,
    rank_manifest_key,
)
from ..format.retention import removal_groups
from ..store import ObjectStore, is_below_own
from .frozen_watch import damage_of
from .messages import PushSettings
from .seals import Seals
from .speed import Speed

NUM_WRITES: Final = 2  # one is written while another one is forced to disk
LOCAL_STEPS: Final = 2  # the newest may still be incomplete on another rank, so the one before stays
STALL_S: Final = 60.0
"""Time without a finished blob after which the disk is given up."""
SLOWEST_BYTES_PER_S: Final = 4 * 1024**2
"""A disk that writes a blob at this speed is not given up, however large the blob is."""
PRUNE_S: Final = 5.0
"""Longest wait for the removal of old copies after a step is written. The next step cannot be written before it."""


class Disk:
    """
    The local disk of one pusher process, and the thread that writes to it.

    A thread that hangs in the kernel cannot be ended. It is left alone, and nothing else is written until it returns.
    So there are never more such threads than one write has.

    Args:
        store: The store on the disk.
        lower_priority: Called on each thread that writes blobs.
    """

    def __init__(self, store: ObjectStore, lower_priority: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.lower_priority = lower_priority
        self.speed = Speed()
        self._thread = ThreadPoolExecutor(1, "spot-disk")
        self._last: Future[None] | None = None
        self._began_at = 0.0
        self.is_done_with = False
        """True if the training has ended and its end is stored, so that nobody needs the copies."""

    def begin(self, work: Callable[[], None]) -> Future[None]:
        """
        Do *work* on the thread of the disk.

        Raises:
            StoreError: The work before has not ended, because the disk hangs.
        """
        if self._last is not None and not self._last.done():
            hangs_s = time.monotonic() - self._began_at
            raise StoreError("put", "", f"the local disk has not done the work that it got {hangs_s:.0f} s ago")
        self._began_at = time.monotonic()
        self._last = self._thread.submit(work)
        return self._last

    def end(self, settings: PushSettings) -> None:
        """
        Remove the copies of this rank from a default directory, if nobody needs them.

        A disk that hangs is waited for :data:`STALL_S`.
        """

        def remove() -> None:
            if settings.local_dir is not None and is_below_own(settings.local_dir):
                remove_copies(self.store, settings)

        if self.is_done_with:
            with suppress(StoreError):  # what is left is swept after some days
                # wait: STALL_S; the copies are swept after some days
                wait([self.begin(remove)], STALL_S)


class _GivenUpError(Exception):
    """Ends a write whose end was told before it came."""


class LocalWrite:
    """
    The write of one step. It runs from its construction on, and one event tells how it ended.

    Args:
        seals: Its blobs, each of which is written as soon as it is sealed. Their bytes are not read after
            :meth:`finish`.
        settings: The settings of its rank.
        disk: The disk.
        bus: Gets the event.
    """

    def __init__(self, seals: Seals, settings: PushSettings, disk: Disk, bus: EventBus) -> None:
        self._seals = seals
        self._settings = settings
        self._disk = disk
        self._bus = bus
        self._changed = threading.Condition()
        self._is_decided = False
        self._is_free = False
        self._progressed_at = time.monotonic()
        self._stall_s = max(STALL_S, max(map(len, seals.images), default=0) / SLOWEST_BYTES_PER_S)
        self._work: Future[None] | None = None
        try:
            self._work = disk.begin(self._write)
        except StoreError as error:
            self._decide(str(error))
            return
        self._work.add_done_callback(lambda work: self._notify())

    def free(self) -> None:
        """End the wait of :meth:`finish` for a step that the store has. Callable from any thread."""
        self._is_free = True
        self._notify()

    def finish(self, spare_s: float | None) -> None:
        """
        Wait for the end of the write. One that takes too long is given up.

        Args:
            spare_s: The time that may be waited for a step that the store has. None: the store does not have it. Then
                the write may take any time, as long as blobs are finished.
        """
        if self._work is None:
            return
        latest = time.monotonic() + spare_s if spare_s is not None else float("inf")
        reason = ""
        with self._changed:
            while not (self._work.done() or reason):
                now, stalls_at = time.monotonic(), self._progressed_at + self._stall_s
                if now >= stalls_at:
                    reason = f"the local disk has finished no blob for {self._stall_s:.0f} s"
                elif now >= latest + self._prune_s or (self._is_free and spare_s is not None):
                    reason = "the local disk is slower than the store, which has the step"
                else:
                    # wait: _stall_s without a finished blob; the disk is given up
                    self._changed.wait(min(latest + self._prune_s, stalls_at) - now)
        if reason:
            self._decide(reason)
            return
        with suppress(Exception):  # old copies could not be removed; the next save tries again
            # wait: at once; the work has ended
            self._work.result()

    @property
    def _prune_s(self) -> float:
        return PRUNE_S if self._is_decided else 0.0

    def _write(self) -> None:
        started = time.monotonic()
        images, step_id = self._seals.images, self._seals.step_id
        try:
            with ThreadPoolExecutor(NUM_WRITES, "spot-write", self._disk.lower_priority) as pool:
                list(pool.map(self._write_blob, range(len(images)), images))
            num_bytes, write_s = sum(map(len, images)), time.monotonic() - started
            self._disk.speed.record(num_bytes, write_s)
            manifest = self._seals.manifest()
            self._disk.store.put(rank_manifest_key(step_id, manifest.rank, manifest.world_size), manifest.encode())
        except StoreError as error:
            self._decide(str(error))
        except Exception as error:  # noqa: BLE001 - a bug must not end the pusher: the store still gets the step
            self._decide(f"unexpected {error!r}")
        else:
            self._decide(None, num_bytes, write_s)
            self._prune(LOCAL_STEPS)
            return
        self._prune(LOCAL_STEPS - 1, half_written=step_id)

    def _write_blob(self, index: int, image: memoryview) -> None:
        local, sealed = self._disk.store, self._seals[index]
        key = sealed.blob.key
        if key.startswith(FROZEN_PREFIX) and damage_of(local, sealed) is None:
            return
        self._check_wanted()
        local.put(key, image)
        self._progressed_at = time.monotonic()
        try:
            self._check_wanted()
        except _GivenUpError:  # another step may have been in the memory before its last byte was written
            local.delete(key)
            raise

    def _check_wanted(self) -> None:
        if self._is_decided:
            raise _GivenUpError

    def _decide(self, failure: str | None, num_bytes: int = 0, write_s: float = 0.0) -> None:
        """Tell the end of the write, unless it was told before."""
        with self._changed:
            if self._is_decided:
                return
            self._is_decided = True
        step = self._seals.step_id.step
        if failure is not None:
            self._bus.emit(events.LocalWriteFailed(step=step, reason=failure))
            return
        speed = self._disk.speed.bytes_per_s
        self._bus.emit(events.WrittenLocally(step=step, num_bytes=num_bytes, write_s=write_s, write_bytes_per_s=speed))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _prune(self, num_kept: int, half_written: StepId | None = None) -> None:
        """Remove this rank's older copies, and *half_written*."""
        local = self._disk.store
        with suppress(StoreError):  # one copy too many is no failure, and the next save tries again
            mine = _copies_of(local, self._settings)
            # The newest attempt counts first: it may have resumed before steps of an older attempt.
            whole = sorted(mine.keys() - {half_written}, key=lambda step_id: (step_id.attempt, step_id.step))
            for step_id in [*whole[:-num_kept], *(mine.keys() & {half_written})]:
                for key in chain(*removal_groups(mine[step_id])):
                    local.delete(key)


def remove_copies(local: ObjectStore, settings: PushSettings) -> None:
    """Remove all copies of a rank, and with the last copies of a machine what their ranks share."""
    for keys in _copies_of(local, settings).values():
        for key in chain(*removal_groups(keys)):
            local.delete(key)
    for key in local.keys(EVENTS_PREFIX):
        segment = parse_segment_key(key)
        if segment is not None and segment.rank % settings.world_size == settings.rank:
            local.delete(key)
    if not list(local.keys(STEPS_PREFIX)):
        for key in [*local.keys(FROZEN_PREFIX), *local.keys(ATTEMPTS_PREFIX)]:
            local.delete(key)


def _copies_of(local: ObjectStore, settings: PushSettings) -> dict[StepId, list[str]]:
    """Return the keys of the copies that a rank looks after, also those of ranks that the job no longer has."""
    copies: dict[StepId, list[str]] = {}
    for key in local.keys(STEPS_PREFIX):
        step_id, rank = parse_step_id(key), _rank_of(key)
        if step_id is not None and rank is not None and rank % settings.world_size == settings.rank:
            copies.setdefault(step_id, []).append(key)
    return copies


def _rank_of(key: str) -> int | None:
    """Return the rank that wrote the blob or manifest *key*."""
    if (manifest := parse_rank_manifest_key(key)) is not None:
        return manifest.rank
    name = key.rpartition("/")[2]
    return int(name[1:6]) if name[:1] == "r" and name[1:6].isdigit() else None
