"""The prefetch: blobs are downloaded to the local disk while torch is still being imported."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..config import checked
from ..errors import ConfigError, SpotError
from ..format.commit import NUM_GETS, committed_steps
from ..format.manifest import Blob
from ..launch.drilled import drilled
from ..locations import is_local
from ..machine.threads import NoThreadError, start_thread
from ..store import (
    HangingDiskError,
    LimitedStore,
    LocalDisk,
    ObjectStore,
    attentively,
    get_first,
    open_local,
    open_store,
    patiently,
    scratch_directory,
)
from .manifests import manifest_of

logger = logging.getLogger(__name__)

STOP_S: Final = 300.0  # longest wait for the blobs in progress when a resume begins
SPARE_BYTES: Final = 1024**3  # room that a prefetch leaves on the disk for the next save and the job

_FAILURES: Final = (SpotError, KeyError, OSError)

_running: dict[str, Prefetch] = {}


def prefetch(
    url: str | None = None, *, local_dir: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Prefetch | None:
    """
    Start to download this rank's blobs of the newest committed step to the local disk, on threads.

    Call it in the first line of the program, before heavy imports and ``init_process_group``. The resume reads the
    blobs that have arrived by then from the disk, and the others from the store. Each rank downloads the blobs that the
    rank of its number has saved, by ``RANK`` and ``WORLD_SIZE``. If the step has more ranks, some download several.

    Errors of the download are logged and otherwise harmless, because the resume verifies every byte.

    Args:
        url: URL of the run, as in :class:`~spot_plugins.config.SpotConfig`. None: ``SPOT_URL``.
        local_dir: Local directory, as in the configuration of the run. None: ``SPOT_LOCAL_DIR``.
        storage_options: Storage options, as in the configuration of the run.

    Returns:
        The download. None if *url* is a local directory or this is a drill, so that there is nothing to download, or if
        the local disk does not answer, or the machine has no room for a thread.

    Raises:
        ConfigError: *url* or *local_dir* cannot work.
    """
    url = url or os.environ.get("SPOT_URL")
    if not url:
        raise ConfigError("url is missing. Pass it, or set SPOT_URL, for example to s3://bucket/run-7")
    url, given = checked("url", url), local_dir or os.environ.get("SPOT_LOCAL_DIR")
    given = checked("local_dir", given) if given else None
    if is_local(url) or drilled() is not None:
        return None
    disk = LocalDisk(given)
    try:
        directory = given or disk.do(lambda: scratch_directory(url))
    except HangingDiskError:
        return None
    started = Prefetch(open_store(url, storage_options), directory, disk)
    try:
        start_thread(started)
    except NoThreadError as error:
        logger.warning("no prefetch: %s", error)
        return None
    _running[directory] = started
    return started


def stop_prefetch(directory: str | None, wait: Callable[[float], None]) -> None:
    """
    Stop the prefetch into *directory*, after the blobs in progress. The resume reads the others itself.

    Args:
        directory: The local directory, or None.
        wait: Waits for a number of seconds. It raises if there is a notice.
    """
    if directory is not None and (running := _running.pop(directory, None)) is not None:
        running.stop(wait)


class Prefetch(threading.Thread):
    """The thread of one prefetch. :func:`prefetch` starts it."""

    def __init__(self, store: ObjectStore, directory: str, disk: LocalDisk) -> None:
        super().__init__(name="spot-prefetch", daemon=True)
        self._store = store
        self._directory = directory
        self._disk = disk
        self._local = LimitedStore(open_local(directory), disk)
        self._rank = _number("RANK", 0)
        self._world_size = max(_number("WORLD_SIZE", 1), 1)
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self.num_bytes = 0
        """Bytes downloaded so far."""

    def run(self) -> None:
        """Download, and log errors."""
        started = time.monotonic()
        try:
            self._disk.do(lambda: os.makedirs(self._directory, exist_ok=True))
            queue: SimpleQueue[Blob] = SimpleQueue()
            for blob in self._wanted():
                queue.put(blob)
            # Daemon threads, because a program does not end before an executor has done all its work.
            getters = []
            with suppress(NoThreadError):  # this thread and those that have started do the work
                for _ in range(NUM_GETS - 1):
                    getter = threading.Thread(
                        target=self._download_all, args=(queue,), name="spot-prefetch-get", daemon=True
                    )
                    getters.append(start_thread(getter))
            self._download_all(queue)
            for getter in getters:
                # wait: until its request has ended or the client of the store gives it up; a thread of its own
                getter.join()
        except _FAILURES as error:
            logger.info("no prefetch: %s", error)
        logger.info("prefetched %.1f MB in %.1f s", self.num_bytes / 1e6, time.monotonic() - started)

    def stop(self, wait: Callable[[float], None]) -> None:
        """Start no further blob, and wait for those in progress. See :func:`stop_prefetch`."""
        self._stopped.set()
        latest = time.monotonic() + STOP_S
        # wait: STOP_S; resume() downloads the blobs that are in progress once more
        attentively(self.join, wait, lambda: time.monotonic() > latest)

    def _wanted(self) -> list[Blob]:
        """Return the blobs of the newest step that this rank has to download."""
        steps = patiently(lambda: committed_steps(self._store))
        if not steps:
            return []
        newest = steps[0]
        wanted: list[Blob] = []
        for rank in range(self._rank, newest.world_size, self._world_size):
            wanted += manifest_of(self._store, newest, rank).blobs
        present = {*self._local.keys("steps/"), *self._local.keys("frozen/")}
        return [blob for blob in wanted if blob.key not in present]

    def _download_all(self, queue: SimpleQueue[Blob]) -> None:
        """Download the blobs in *queue*, until it is empty or a download fails on any thread."""
        try:
            while not self._stopped.is_set():
                blob = queue.get_nowait()
                free = self._disk.do(lambda: shutil.disk_usage(self._directory).free)
                if blob.num_bytes + SPARE_BYTES > free:
                    raise OSError(errno.ENOSPC, f"only {free / 1e9:.1f} GB are free", self._directory)
                data = get_first(self._store, blob.key, blob.num_bytes + 1)
                if len(data) == blob.num_bytes:
                    self._local.put(blob.key, data)
                    with self._counting:
                        self.num_bytes += blob.num_bytes
        except Empty:
            return
        except _FAILURES as error:
            logger.info("prefetch ends early: %s", error)
            self._stopped.set()


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not text.isdigit():
        raise ConfigError(f"{variable}={text!r} is not a number. A launcher such as torchrun sets it, so unset it")
    return int(text or default)
