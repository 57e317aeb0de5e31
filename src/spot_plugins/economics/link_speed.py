"""Measurement of the real speed to the store of a run and to the local disk, with little data and a limit of time."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..errors import StoreError
from ..store import LocalStore, ObjectStore, check_writable, open_store
from .inputs import Figure

MAX_BYTES: Final = 256 * 1024**2
"""Most bytes that one measurement puts."""
LIMIT_S: Final = 10.0
"""Seconds after which no other put is begun."""
NUM_PUTS: Final = 8
"""Puts in flight, as many as a push has."""
_FIRST_BYTES: Final = 256 * 1024
_SMALLEST_BYTES: Final = 64 * 1024
_LARGEST_BYTES: Final = 8 * 1024**2

logger = logging.getLogger(__name__)


def measure_store(url: str) -> Figure:
    """
    Measure the speed of puts to the store of the run at *url*, in bytes per second, and remove all that was put.

    Raises:
        ConfigError: *url* cannot work.
        StoreError: The store does not answer.
    """
    store = open_store(url)
    check_writable(store)
    return _measured(store, "store")


def measure_disk(parent: str | None = None) -> Figure:
    """
    Measure the speed of forced writes below *parent*, in bytes per second.

    Args:
        parent: A directory. None: the temporary directory, where local copies lie by default.

    Raises:
        StoreError: The disk cannot be written to.
    """
    try:
        directory = tempfile.mkdtemp(prefix="spot-plan-", dir=parent)
    except OSError as error:
        raise StoreError("put", parent or tempfile.gettempdir(), str(error.strerror), retryable=False) from error
    try:
        return _measured(LocalStore(directory), "local disk")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measured(store: ObjectStore, name: str) -> Figure:
    prefix = f"probe/plan-{uuid.uuid4().hex}/"
    data = memoryview(os.urandom(_LARGEST_BYTES))  # because some stores compress

    def put(key: str, size: int, deadline: float) -> int:
        """Put *size* bytes, unless the deadline is over. Return the number of bytes."""
        if time.monotonic() >= deadline:
            return 0
        store.put(prefix + key, data[:size])
        return size

    try:
        started = time.monotonic()
        put("first", _FIRST_BYTES, math.inf)
        first_s = max(time.monotonic() - started, 1e-6)
        # Several rounds have to fit into the limit, even if the puts share the speed of the first one.
        size = int(_FIRST_BYTES / first_s * LIMIT_S / 4 / NUM_PUTS)
        size = min(max(size, _SMALLEST_BYTES), _LARGEST_BYTES)
        started = time.monotonic()
        with ThreadPoolExecutor(NUM_PUTS, "spot-measure") as pool:
            keys = map(str, range(MAX_BYTES // size))
            total = sum(pool.map(lambda key: put(key, size, started + LIMIT_S), keys))
        took_s = max(time.monotonic() - started, 1e-6)
    finally:
        _remove(store, prefix)
    return Figure(total / took_s, f"measured: {total / 1e6:,.0f} MB to the {name} in {took_s:.1f} s")


def _remove(store: ObjectStore, prefix: str) -> None:
    try:
        for key in list(store.keys(prefix)):
            store.delete(key)
    except StoreError as error:
        logger.warning("the measurement could not remove its objects below %s: %s. Delete them", prefix, error.reason)
