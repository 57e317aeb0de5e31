"""
The pusher process: ``python -m spot_plugins.push.worker FD``. One per rank, in its own session.

It hashes each staged step, writes it to the local disk, puts it to the store and commits it. If the trainer dies, it
finishes the steps that it has. It never ends the training: every failure is an event.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import Any, Final

from .. import events
from ..errors import SpotError
from ..eventlog.pusher_log import PusherLog
from ..events import EventBus
from ..format.commit import merge_manifests, stored_manifests
from ..format.keys import StepId
from ..format.manifest import ManifestError
from ..store import RenewedStore, Secrets, open_local, open_store, sweep
from . import messages
from .frozen_watch import FrozenWatch
from .keeping import Marks
from .local_write import Disk
from .messages import Channel, FrozenUse, PushJob, PushSettings, SealedBlob, StoredFrozen
from .priority import Priority
from .proof import serve_proofs
from .share_push import SharePush
from .shared_file import FileWriter
from .step_push import StepPush, Ways

LINGER_S: Final = 600.0
"""Time that a pusher whose trainer is gone keeps trying to store its steps."""

MERGE_S: Final = 10.0
"""Time that a pusher whose trainer is gone waits for the other ranks, to merge their manifests."""

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0


class Worker:
    """Receives jobs on the main thread, so that the trainer never waits, and pushes them on another one."""

    def __init__(self, channel: Channel, settings: PushSettings) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._waiting: deque[tuple[PushJob, list[memoryview]]] = deque()
        self._priority = priority = Priority()
        if settings.hurries:  # before any thread lowers its priority, which the threads of a client would inherit
            priority.hurry()
        self._pushing: StepPush | None = None
        self._trainer_gone = False
        self._hopeless = False
        self._buffers: dict[int, mmap.mmap] = {}
        self._settings = settings
        store = RenewedStore(lambda: open_store(settings.url, settings.storage_options))
        local = None if settings.local_dir is None else open_local(settings.local_dir)
        log = PusherLog(
            store,
            local,
            attempt=settings.attempt,
            rank=settings.rank,
            world_size=settings.world_size,
            hide=Secrets(settings.url, settings.storage_options).hide,
            on_failure=lambda reason: self._send({"log_failed": reason}),
        )
        self._bus = EventBus(lambda event: self._send(messages.encode_event(event)), log.on_event)
        self._watch = FrozenWatch(store, local, settings, self._bus)
        self._ways = Ways(
            store=store,
            disk=None if local is None else Disk(local, priority.lower_always),
            lower_priority=priority.lower,
            damaged=self._watch.damaged,
            marks=Marks(store, settings, self._bus, lambda: self._send({"pruned": True})),
            log=log,
            file=FileWriter(lambda reason: self._send({"file_failed": reason})),
        )

    def run(self) -> None:
        """Serve until the trainer is gone and every step is stored or given up."""
        log = self._ways.log
        assert log is not None
        log.start()
        pusher = threading.Thread(target=self._push_all, name="spot-push")
        pusher.start()
        self._watch.start(self._priority.lower)
        threading.Thread(target=sweep, args=(self._settings.local_dir,), name="spot-sweep", daemon=True).start()
        try:
            while True:
                self._on_message(*self._channel.receive())
        except (EOFError, OSError):
            pass
        finally:  # after a bug here, too: the other thread must not wait for ever for jobs that nobody receives
            log.trainer_gone()
            self._ways.file.end()
            with self._changed:
                self._trainer_gone = True
                self._changed.notify_all()
        # wait: LINGER_S; no request is tried again from then on
        pusher.join(LINGER_S)
        with self._changed:
            self._hopeless = True
            self._hasten()
            self._changed.notify_all()
        # wait: until the request in flight has ended or the client of the store gives it up; the process ends
        pusher.join()
        log.close()
        self._ways.file.close()
        if self._ways.disk is not None:
            self._ways.disk.end(self._settings)

    def _on_message(self, body: dict[str, Any], fd: int | None) -> None:
        match body:
            case {"buffer": int(number), "num_bytes": int(num_bytes)}:
                assert fd is not None
                self._buffers[number] = mapping = mmap.mmap(fd, num_bytes)
                weakref.finalize(mapping, _give_back, fd).atexit = False
            case {"drop_buffer": int(number)}:
                del self._buffers[number]
            case {"hurry": True}:
                self._priority.hurry()
                with self._changed:
                    if self._pushing is not None:  # the last save may need its memory
                        self._pushing.free()
            case {"file": str(path), "num_bytes": int(num_bytes)}:
                assert fd is not None
                self._ways.file.keep(path, fd, num_bytes)
            case {"finished": True}:
                if self._ways.disk is not None:
                    self._ways.disk.is_done_with = True
            case {"log": list(records)}:
                assert self._ways.log is not None
                self._ways.log.add(records)
            case {"frozen": int()}:
                self._watch.frozen = messages.decode_frozen(body)
            case {"wish": _}:
                with self._changed:
                    assert self._ways.marks is not None
                    self._ways.marks.add(messages.decode_wish(body))
                    self._changed.notify_all()
            case _:
                job = messages.decode_job(body)
                # Looked up now: the trainer may drop a buffer as soon as it has handed over the step.
                memory = {number: memoryview(self._buffers[number]) for number in {each.buffer for each in job.blobs}}
                images = [memory[each.buffer][each.offset : each.offset + each.num_bytes] for each in job.blobs]
                with self._changed:
                    self._waiting.append((job, images))  # two, if training saved twice while this process started
                    self._hasten()
                    self._changed.notify_all()

    def _push_all(self) -> None:
        while (pushed := self._push_next()) is not None:
            step, is_committed = pushed
            if is_committed and self._settings.rank == 0 and self._settings.world_size > 1:
                self._gather(StepId(step, self._settings.attempt))

    def _push_next(self) -> tuple[int, bool] | None:
        """
        Push the job that has waited longest.

        Return its step, and whether the share of this rank is committed. Return None if no job will come.
        """
        self._fulfill_until_next()
        with self._changed:
            if not self._waiting:
                return None
            job, images = self._waiting.popleft()
            self._pushing = push = self._push_of(job, images)
            self._hasten()
        try:
            push.run()
        finally:
            with self._changed:
                self._pushing = None
            if push.is_committed and push.frozen:
                self._watch.frozen = frozen = StoredFrozen(job.frozen_set, tuple(push.frozen))
                self._send(messages.encode_frozen(frozen))
            self._send({"released": job.buffers})
        return job.step, push.is_committed or job.of_rank is not None

    def _push_of(self, job: PushJob, images: list[memoryview]) -> StepPush:
        if job.of_rank is None:
            frozen = self._frozen_before(job)
            return StepPush(job, self._settings, images, ways=self._ways, bus=self._bus, frozen=frozen)
        settings = replace(self._settings, rank=job.of_rank, local_dir=None)
        return SharePush(job, settings, images, ways=replace(self._ways, disk=None), bus=self._bus)

    def _fulfill_until_next(self) -> None:
        """Mark and release steps until a job waits or none will come. All marks are tried once before the job."""
        marks = self._ways.marks
        assert marks is not None
        while True:
            marks.fulfill()
            with self._changed:
                if self._waiting or self._hopeless or (self._trainer_gone and marks.is_done):
                    return
                if marks.is_done:
                    # wait: until a job comes or the trainer is gone; a thread that nobody waits for before LINGER_S
                    self._changed.wait_for(lambda: self._waiting or self._trainer_gone or not marks.is_done)
                else:
                    # wait: the pause of the marks; they are tried again
                    self._changed.wait(marks.pause_s)

    def _frozen_before(self, job: PushJob) -> list[SealedBlob]:
        """Return the frozen blobs that are stored and belong to *job*."""
        if job.frozen_use is not FrozenUse.REFERS:
            return []
        frozen = self._watch.frozen
        assert frozen.number == job.frozen_set
        return list(frozen.blobs)

    def _gather(self, step_id: StepId) -> None:
        """Merge the manifests of all ranks, and say which of them are missing once a newer step is staged."""
        missing: tuple[int, ...] = ()
        visible: int | None = step_id.step
        if not self._merge(step_id):
            if self._finishes_share:
                return  # it is counted after that
            try:
                stored = [
                    each for each in stored_manifests(self._ways.store) if each.step_id.attempt == step_id.attempt
                ]
            except SpotError:  # the next step is counted
                return
            there = {rank for each in stored if each.step_id == step_id for rank in each.ranks}
            missing = tuple(sorted(set(range(self._settings.world_size)) - there))
            visible = max((each.step_id.step for each in stored if each.is_committed), default=None)
        self._bus.emit(events.SharesCounted(step=step_id.step, missing_ranks=missing, visible_step=visible))

    @property
    def _finishes_share(self) -> bool:
        """True if the share of another rank is pushed next."""
        with self._changed:
            return bool(self._waiting) and self._waiting[0][0].of_rank is not None

    def _merge(self, step_id: StepId) -> bool:
        """
        Add the merged manifest once all ranks have put theirs, unless a newer step is staged before.

        Return whether it was added.
        """
        pause_s, deadline = FIRST_PAUSE_S, math.inf
        while time.monotonic() < deadline:
            try:
                if merge_manifests(self._ways.store, step_id, self._settings.world_size):
                    return True
            except (SpotError, ManifestError, KeyError):  # readers can do without the merged one
                return False
            with self._changed:
                # wait: LONGEST_PAUSE_S; it looks again whether all ranks have committed
                self._changed.wait_for(lambda: self._waiting, timeout=pause_s)
                if self._waiting:
                    return False
                if self._trainer_gone:
                    deadline = min(deadline, time.monotonic() + MERGE_S)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return False

    def _hasten(self) -> None:
        """Let the push under way not wait for a failing store any more. Call with the lock held."""
        if self._pushing is None:
            return
        if self._hopeless:
            self._pushing.give_up("the session is closed")
        elif self._waiting:
            self._pushing.give_up("a newer step is staged and the store does not answer")

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the trainer is gone
            self._channel.send(message)


def _give_back(fd: int) -> None:
    """
    Free the memory of a buffer that the trainer has dropped. Called when no step of this process is in it any more.

    Without this, each worker of a data loader that was forked meanwhile would keep the memory until its own end.
    """
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
    os.close(fd)


def main() -> None:
    """Entry point. The one argument is the descriptor of the socket to the trainer."""
    # Such a signal is for the trainer; this process ends after its work. The signals are blocked until here.
    for number in messages.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    body, _ = channel.receive()
    settings = serve_proofs(channel, PushSettings(**body))
    if settings is not None:
        Worker(channel, settings).run()
    os._exit(0)  # Python would wait for a thread that hangs in the kernel, because of a sick disk
