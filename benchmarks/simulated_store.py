"""A store that keeps the names and sizes of objects, and records each request that S3 would get."""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_left, insort
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from spot_plugins.store.base import ObjectInfo, scatter
from spot_plugins.store.put_if_absent import ConditionalPuts

PAGE_KEYS = 1000
"""Keys in one answer to a LIST of S3."""


_M_MMAP_THRESHOLD = -3  # of mallopt()
_FRESH_BYTES = 128 * 1024  # the threshold of glibc, which it would raise with time


class Request(NamedTuple):
    """One request to the service."""

    kind: str
    """PUT, GET, LIST or DELETE."""
    num_bytes: int
    pool: str
    """The name of the thread that sent it, without its number."""


def keep_memory_fresh():
    """Let large memory come from the system each time, so that it is zero and takes no room before it is written."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _FRESH_BYTES)


class SimulatedStore:
    """
    A store in which blobs are zeros that nobody holds. Memory of a reader that is zero already is not written.

    It answers at once. The seconds come from a replay of the requests, see :mod:`.replay`.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._conditional = ConditionalPuts()
        self._sizes = {}
        self._kept = {}
        self._sorted = []
        self.trace = []
        """The requests that are recorded now."""
        self.absent = {}
        """Functions that return the bytes of JSON objects that were added without them, by key."""

    @contextmanager
    def recording(self):
        """Yield a list of the requests that are sent within the ``with`` block."""
        before, self.trace = self.trace, []
        try:
            yield self.trace
        finally:
            self.trace = before

    def add(self, sizes):
        """Add objects without a request, given their sizes by key. :attr:`absent` has the bytes of those with JSON."""
        self._sizes |= sizes
        self._sorted = sorted(self._sizes)

    def sizes(self, prefix):
        """Return the sizes of the objects below *prefix* by key, without a request."""
        with self._lock:
            return {key: self._sizes[key] for key in self._below(prefix)}

    def peek(self, key):
        """Return the bytes of a JSON object, without a request."""
        return self._kept[key]

    def put(self, key, data):
        with self._lock:
            if key not in self._sizes:
                insort(self._sorted, key)
            self._sizes[key] = len(data)
            if not key.endswith(".safetensors"):
                self._kept[key] = bytes(data)
        self._record("PUT", len(data))

    def put_if_absent(self, key, data):
        return self._conditional.put(key, lambda: self._create(key, data))

    def get(self, key):
        memory = bytearray(self._sizes.get(key, 0))
        self.get_into(key, 0, [memoryview(memory)])
        return bytes(memory)

    def get_into(self, key, start, targets):
        count = min(max(self._sizes.get(key, 0) - start, 0), sum(target.nbytes for target in targets))
        self._record("GET", count)
        if key not in self._sizes:
            raise KeyError(key)
        kept = self.absent[key]() if key in self.absent else self._kept.get(key)
        if kept is not None:
            return scatter(kept[start:], targets)
        for target in targets:
            if target.nbytes and np.frombuffer(target, np.uint8).any():  # it was used before
                target[:] = bytes(target.nbytes)
        return count

    def keys(self, prefix):
        with self._lock:
            found = self._below(prefix)
        for _ in range(max(1, -(-len(found) // PAGE_KEYS))):
            self._record("LIST", 0)
        return iter(found)

    def objects(self, prefix):
        return (ObjectInfo(key, self._sizes[key], 0.0) for key in self.keys(prefix))

    def delete(self, key):
        self._record("DELETE", 0)
        with self._lock:
            if self._sizes.pop(key, None) is not None:
                del self._sorted[bisect_left(self._sorted, key)]
                self._kept.pop(key, None)
                self.absent.pop(key, None)

    def _create(self, key, data):
        if key in self._sizes:
            self._record("PUT", len(data))
            return False
        self.put(key, data)
        return True

    def _below(self, prefix):
        return self._sorted[bisect_left(self._sorted, prefix) : bisect_left(self._sorted, prefix + "\U0010ffff")]

    def _record(self, kind, num_bytes):
        pool = threading.current_thread().name.partition("_")[0]
        self.trace.append(Request(kind, num_bytes, pool))
