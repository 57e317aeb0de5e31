"""A restore that begins before the job does: blobs come to the local disk while torch is still being imported."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from .commit import NUM_GETS, committed_steps
from .errors import ConfigError, SpotError
from .keys import rank_manifest_key
from .manifest import Blob, ManifestError, RankManifest
from .store import LocalStore, ObjectStore, is_local, local_directory, open_store, patiently

logger = logging.getLogger(__name__)

SPARE_BYTES: Final = 1024**3  # a disk that this fills would fail the next save, or the job

_running: dict[str, Prefetch] = {}


def prefetch(
    url: str, *, local_dir: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Prefetch | None:
    """
    Begin to bring this rank's blobs of the newest committed step to the local disk, on a thread.

    Call it first of all in the program, before heavy imports and ``init_process_group``; the resume that follows takes
    what is there by then from the disk, and the rest from the store. Ranks of one machine share the work: each brings
    the blobs of its own number, as ``RANK`` and ``WORLD_SIZE`` say, and on another number of ranks of several.

    What goes wrong is logged and otherwise harmless: every byte is verified when it is used.

    Args:
        url: The same as for the run, see :class:`~spot_plugins.config.SpotConfig`.
        local_dir: The same as for the run.
        storage_options: The same as for the run.

    Returns:
        What is under way; None if there is nothing to do, because *url* is a local directory already.

    Raises:
        ConfigError: *url* or *local_dir* cannot work.
    """
    directory = local_directory(url, local_dir)
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
        self.num_bytes = 0
        """Bytes that came so far."""

    def run(self) -> None:
        """Download. Never raises."""
        started = time.monotonic()
        try:
            blobs = self._wanted()
            free = shutil.disk_usage(os.path.dirname(os.path.abspath(self._directory))).free
            if sum(blob.num_bytes for blob in blobs) + SPARE_BYTES > free:
                logger.info("no prefetch: the disk of %s has only %.1f GB free", self._directory, free / 1e9)
                return
            with ThreadPoolExecutor(NUM_GETS, "spot-prefetch") as pool:
                list(pool.map(self._bring, blobs))
        except (SpotError, ManifestError, KeyError, OSError) as error:
            logger.info("prefetch ended early: %s", error)
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

    def _bring(self, blob: Blob) -> None:
        if not self._stopped.is_set():
            self._local.put(blob.key, self._store.get(blob.key))
            self.num_bytes += blob.num_bytes


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not text.isdigit():
        raise ConfigError(f"{variable}={text!r} is no number of a rank: torchrun and others set it, so unset it")
    return int(text or default)
