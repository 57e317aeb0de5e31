"""
The pusher process: ``python -m spot_plugins.push.worker FD``. One per rank, in its own session.

It hashes what is staged, writes it to the local disk, puts it to the store and commits it. It outlives a
trainer that died and finishes what was staged. It never ends the training: what goes wrong is an event.
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
from collections import deque
from typing import Any, Final

from ..errors import SpotError
from ..events import EventBus
from ..format.commit import merge_manifests
from ..format.keys import StepId
from ..format.manifest import ManifestError
from ..store import LocalStore, open_store
from . import messages
from .messages import PushJob, PushSettings, SealedBlob
from .priority import Priority
from .speed import Meters
from .step_push import StepPush

LINGER_S: Final = 600.0
"""How long a pusher whose trainer is gone keeps trying to store what was staged."""

MERGE_S: Final = 10.0
"""How long a pusher whose trainer is gone waits for the other ranks, to merge their manifests."""

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0


class Worker:
    """Reads jobs on the main thread, so that the trainer never waits, and pushes on another."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._send_lock = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[PushJob, list[memoryview]]] = deque()
        self._priority = Priority()
        self._frozen: dict[int, list[SealedBlob]] = {}
        self._pushing: StepPush | None = None
        self._trainer_gone = False
        self._hopeless = False
        self._buffers: dict[int, mmap.mmap] = {}
        self._meters = Meters()
        body, _ = messages.receive(sock)
        self._settings = settings = PushSettings(**body)
        self._store = open_store(settings.url, settings.storage_options)
        self._local = None if settings.local_dir is None else LocalStore(settings.local_dir)
        self._bus = EventBus(lambda event: self._say(messages.encode_event(event)))

    def run(self) -> None:
        """Serve until the trainer is gone and all that was staged is stored or hopeless."""
        pusher = threading.Thread(target=self._push_all, name="spot-push")
        pusher.start()
        try:
            while True:
                self._obey(*messages.receive(self._sock))
        except (EOFError, OSError):
            pass
        finally:  # after a bug here, too: nothing may wait for ever for jobs that nobody reads
            with self._changed:
                self._trainer_gone = True
                self._changed.notify_all()
        pusher.join(LINGER_S)
        with self._changed:
            self._hopeless = True
            self._hasten()
        pusher.join()

    def _obey(self, body: dict[str, Any], fd: int | None) -> None:
        match body:
            case {"buffer": int(number), "num_bytes": int(num_bytes)}:
                assert fd is not None
                self._buffers[number] = mmap.mmap(fd, num_bytes)
                os.close(fd)
            case {"drop_buffer": int(number)}:
                del self._buffers[number]
            case {"hurry": True}:
                self._priority.hurry()
            case _:
                job = messages.decode_job(body)
                # Looked up now: the trainer may let go of a buffer as soon as it has handed it over.
                memory = {number: memoryview(self._buffers[number]) for number in {each.buffer for each in job.blobs}}
                images = [memory[each.buffer][each.offset : each.offset + each.num_bytes] for each in job.blobs]
                with self._changed:
                    self._waiting.append((job, images))  # two, when a fast training was ahead of this process' start
                    self._hasten()
                    self._changed.notify_all()

    def _push_all(self) -> None:
        while (pushed := self._push_next()) is not None:
            step, is_committed = pushed
            if is_committed and self._settings.rank == 0 and self._settings.world_size > 1:
                self._merge(StepId(step, self._settings.attempt))

    def _push_next(self) -> tuple[int, bool] | None:
        """Push what waits longest. Return its step and whether it is committed, or None when nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._trainer_gone)
            if not self._waiting:
                return None
            job, images = self._waiting.popleft()
            self._pushing = push = StepPush(
                job,
                self._settings,
                images,
                store=self._store,
                local=self._local,
                bus=self._bus,
                meters=self._meters,
                frozen=self._frozen_before(job),
                lower_priority=self._priority.lower,
            )
            self._hasten()
        try:
            push.run()
        finally:
            with self._changed:
                self._pushing = None
            if push.committed and push.frozen:
                assert job.frozen is not None
                self._frozen = {job.frozen: push.frozen}
                self._say({"frozen": job.frozen})
            self._say({"released": job.step})
        return job.step, push.committed

    def _frozen_before(self, job: PushJob) -> list[SealedBlob]:
        if job.frozen is None or any(each.is_frozen for each in job.blobs):
            return []
        return self._frozen[job.frozen]

    def _merge(self, step_id: StepId) -> None:
        """Add the merged manifest once all ranks have put theirs, unless a newer step is staged before."""
        pause_s, deadline = FIRST_PAUSE_S, math.inf
        while time.monotonic() < deadline:
            try:
                if merge_manifests(self._store, step_id, self._settings.world_size):
                    return
            except (SpotError, ManifestError, KeyError):  # readers do without
                return
            with self._changed:
                self._changed.wait_for(lambda: self._waiting, timeout=pause_s)
                if self._waiting:
                    return
                if self._trainer_gone:
                    deadline = min(deadline, time.monotonic() + MERGE_S)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _hasten(self) -> None:
        """Tell the push under way not to wait for a failing store. Call with the lock held."""
        if self._pushing is None:
            return
        if self._hopeless:
            self._pushing.give_up("the trainer is gone and the store did not take it in time")
        elif self._waiting:
            self._pushing.give_up("a newer step is staged and the store does not answer")

    def _say(self, message: dict[str, Any]) -> None:
        with self._send_lock, contextlib.suppress(OSError):  # nobody listens to a pusher that outlived its trainer
            messages.send(self._sock, message)


def main() -> None:
    """Entry point. The one argument is the descriptor of the socket to the trainer."""
    # Such a signal means the trainer; we end when the work is done. Up to here the signals are blocked.
    for number in messages.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
