"""Objects in the memory of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from .base import scatter
from .object_names import check_object_key


class MemoryStore:
    """
    Keep objects in a dict. For tests: it passes the contract suite of the real stores.

    No other process sees it, so nothing that is pushed by a process of its own can go there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return "MemoryStore()"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, replacing what was there."""
        check_object_key(key)
        copy = bytes(data)
        with self._lock:
            self._objects[key] = copy

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write *data* under *key* unless something is there. Return whether it was written."""
        check_object_key(key)
        copy = bytes(data)
        with self._lock:
            # setdefault() would not tell an equal object of somebody else from ours.
            if key in self._objects:
                return False
            self._objects[key] = copy
            return True

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if there is none."""
        with self._lock:
            return self._objects[key]

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object from byte *start* on into *targets*. Return how many bytes there were."""
        return scatter(self.get(key)[start:], targets)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as they are now."""
        with self._lock:
            return iter(sorted(key for key in self._objects if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        """Remove the object. Do nothing if there is none."""
        with self._lock:
            self._objects.pop(key, None)
