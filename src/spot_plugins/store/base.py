"""The seam between the commit protocol and whoever keeps the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


class ObjectStore(Protocol):
    """
    The verbs that the commit protocol needs, and no more.

    Keys are relative to the run's URL and ``/``-separated. An implementation guarantees:

    - *whole objects*: a reader gets every byte of an object or :exc:`KeyError`, never a prefix,
      even when the writer dies inside :meth:`put`;
    - *read after write*: once :meth:`put` returns, every process sees the object, and
      :meth:`keys` lists it.

    It need not offer rename, directories or locks; the protocol uses none. Methods block, are safe
    to call from any thread, and raise :exc:`~spot_plugins.errors.StoreError` when the service fails.
    No method retries by itself beyond what its client library does: the caller knows how long it can wait.
    """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, replacing what was there. *data* may be reused afterwards."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless something is there. Return whether it was written.

        Of several racing writers exactly one gets True.

        Raises:
            StoreError: With ``retryable=False`` if the store has no such operation.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if there is none."""
        ...

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """
        Read the object from byte *start* on into *targets*, one behind the other.

        Returns:
            How many bytes there were: fewer than the targets hold if the object is shorter.

        Raises:
            KeyError: There is no such object.
        """
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix* (any string), in lexical order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object. Do nothing if there is none."""
        ...


def scatter(data: bytes | memoryview, targets: Sequence[memoryview]) -> int:
    """Copy *data* into *targets*, one behind the other. Return how many bytes found a place."""
    view = memoryview(data)
    position = 0
    for target in targets:
        piece = view[position : position + target.nbytes]
        target[: piece.nbytes] = piece
        position += piece.nbytes
    return position
