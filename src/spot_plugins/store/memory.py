"""Store in the memory of this process, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from ..clock import wall_time
from .base import ObjectInfo, scatter
from .object_names import check_object_key


class MemoryStore:
    """
    Store that keeps its objects in a dict. It passes the contract suite of the real stores.

    No other process sees the objects, so the pusher process cannot store anything here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._modified_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return "MemoryStore()"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, and replace an existing object."""
        check_object_key(key)
        copy = bytes(data)
        with self._lock:
            self._objects[key] = copy
            self._modified_at[key] = wall_time()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write *data* under *key* unless the object exists. Return whether it was written."""
        check_object_key(key)
        copy = bytes(data)
        with self._lock:
            # Not setdefault(), which cannot distinguish our object from an equal one of another writer.
            if key in self._objects:
                return False
            self._objects[key] = copy
            self._modified_at[key] = wall_time()
            return True

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if it does not exist."""
        with self._lock:
            return self._objects[key]

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object into *targets*, beginning with byte *start*. Return the number of bytes read."""
        return scatter(self.get(key)[start:], targets)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as of now."""
        with self._lock:
            return iter(sorted(key for key in self._objects if key.startswith(prefix)))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with *prefix*, in lexical order of the keys, as of now."""
        with self._lock:
            return iter(
                sorted(
                    ObjectInfo(key, len(data), self._modified_at[key])
                    for key, data in self._objects.items()
                    if key.startswith(prefix)
                )
            )

    def delete(self, key: str) -> None:
        """Delete the object. Do nothing if it does not exist."""
        with self._lock:
            self._objects.pop(key, None)
