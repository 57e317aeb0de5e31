"""A restore that begins before the job does: blobs come to the local disk while torch is still being imported."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..errors import ConfigError, SpotError
from ..format.commit import NUM_GETS, committed_steps
from ..format.keys import rank_manifest_key
from ..format.manifest import Blob, ManifestError, RankManifest
from ..store import LocalStore, ObjectStore, is_local, local_directory, open_store, patiently

logger = logging.getLogger(__name__)

SPARE_BYTES: Final = 1024**3  # a disk that this fills would fail the next save, or the job

_FAILURES: Final = (SpotError, ManifestError, KeyError, OSError)

_running: dict[str, Prefetch] = {}


def prefetch(
    url: str | None = None, *, local_dir: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Prefetch | None:
    """
    Begin to bring this rank's blobs of the newest committed step to the local disk, on a thread.

    Call it first of all in the program, before heavy imports and ``init_process_group``; the resume that follows takes
    what is there by then from the disk, and the rest from the store. Ranks of one machine share the work: each brings
    the blobs of its own number, as ``RANK`` and ``WORLD_SIZE`` say, and on another number of ranks of several.

    What goes wrong is logged and otherwise harmless: every byte is verified when it is used.

    Args:
        url: The same as for the run, see :class:`~spot_plugins.config.SpotConfig`; ``SPOT_URL`` if None.
        local_dir: The same as for the run; ``SPOT_LOCAL_DIR`` if None.
        storage_options: The same as for the run.

    Returns:
        What is under way; None if there is nothing to do, because *url* is a local directory already.

    Raises:
        ConfigError: *url* or *local_dir* cannot work.
    """
    url = url or os.environ.get("SPOT_URL")
    if not url:
        raise ConfigError("url is missing: pass it, or set SPOT_URL, for example to s3://bucket/run-7")
    directory = local_directory(url, local_dir or os.environ.get("SPOT_LOCAL_DIR") or None)
    if is_local(url) or directory is None:
        return None
    started = Prefetch(open_store(url, storage_options), directory)
    _running[directory] = started
    started.start()
    return started


def stop_prefetch(directory: str | None) -> None:
    """Let no further blob begin, and wait for those under way: from now on the resume reads by itself."""
    if directory is not None and (running := _running.pop(directory, None)) is not None:
        running.stop()


class Prefetch(threading.Thread):
    """One download, as :func:`prefetch` begins it."""

    def __init__(self, store: ObjectStore, directory: str) -> None:
        super().__init__(name="spot-prefetch", daemon=True)
        self._store = store
        self._directory = directory
        self._local = LocalStore(directory)
        self._rank = _number("RANK", 0)
        self._world_size = max(_number("WORLD_SIZE", 1), 1)
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self.num_bytes = 0
        """Bytes that came so far."""

    def run(self) -> None:
        """Download. Never raises."""
        started = time.monotonic()
        try:
            os.makedirs(self._directory, exist_ok=True)
            queue: SimpleQueue[Blob] = SimpleQueue()
            for blob in self._wanted():
                queue.put(blob)
            # No executor: a program does not end before one has done all that it was given.
            getters = [
                threading.Thread(target=self._bring_all, args=(queue,), name="spot-prefetch", daemon=True)
                for _ in range(NUM_GETS)
            ]
            for getter in getters:
                getter.start()
            for getter in getters:
                getter.join()
        except _FAILURES as error:
            logger.info("no prefetch: %s", error)
        logger.info("prefetched %.1f MB in %.1f s", self.num_bytes / 1e6, time.monotonic() - started)

    def stop(self) -> None:
        """Let no further blob begin, and wait for those under way."""
        self._stopped.set()
        self.join()

    def _wanted(self) -> list[Blob]:
        """Return the blobs of the newest step that this rank is to bring and that are not there."""
        steps = patiently(lambda: committed_steps(self._store))
        if not steps:
            return []
        newest = steps[0]
        wanted: list[Blob] = []
        for rank in range(self._rank, newest.world_size, self._world_size):
            key = rank_manifest_key(newest.step_id, rank, newest.world_size)
            wanted += RankManifest.decode(self._store.get(key)).blobs
        present = {*self._local.keys("steps/"), *self._local.keys("frozen/")}
        return [blob for blob in wanted if blob.key not in present]

    def _bring_all(self, queue: SimpleQueue[Blob]) -> None:
        """Bring what is in *queue*, until it is empty, or something goes wrong here or on another thread."""
        try:
            while not self._stopped.is_set():
                blob = queue.get_nowait()
                free = shutil.disk_usage(self._directory).free
                if blob.num_bytes + SPARE_BYTES > free:
                    raise OSError(errno.ENOSPC, f"only {free / 1e9:.1f} GB are free", self._directory)
                self._local.put(blob.key, self._store.get(blob.key))
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
        raise ConfigError(f"{variable}={text!r} is no number of a rank: torchrun and others set it, so unset it")
    return int(text or default)
