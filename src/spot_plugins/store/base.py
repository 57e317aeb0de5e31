"""The protocol that every store implements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

_FIRST_BYTES: Final = 1024**2


@dataclass(frozen=True, order=True, slots=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    num_bytes: int
    """Size of the object."""
    modified_at: float | None
    """Time of the last put, in seconds since 1970 by the clock of the service. None if the service does not tell it."""


class ObjectStore(Protocol):
    """
    Operations on the objects of one run. The commit protocol needs no others, and of these not :meth:`objects`.

    Keys are relative to the URL of the run, and separated by ``/``. An implementation guarantees:

    - *whole objects*: a reader gets every byte of an object or :exc:`KeyError`, never the beginning of an object, even
      if the writer dies inside :meth:`put`;
    - *read after write*: once :meth:`put` returns, every process sees the object, and :meth:`keys` lists it.

    An implementation needs no rename, no directories and no locks. Methods block, can be called from any thread, and
    raise :exc:`~spot_plugins.errors.StoreError` if the service fails. No method repeats a request, because only the
    caller knows how long it can wait.
    """

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, and replace an existing object. *data* is not read after the call."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless the object exists. Return whether it was written.

        If several writers call this at once, exactly one gets True.

        Raises:
            StoreError: With ``retryable=False`` if the store has no put-if-absent.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if it does not exist."""
        ...

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """
        Read the object into *targets*, beginning with byte *start* and filling one target after the other.

        Returns:
            The number of bytes read. It is less than the size of the targets if the object ends before.

        Raises:
            KeyError: The object does not exist.
        """
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with the string *prefix*, in lexical order."""
        ...

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with the string *prefix*, in lexical order of the keys."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object. Do nothing if it does not exist."""
        ...


def scatter(data: bytes | memoryview, targets: Sequence[memoryview]) -> int:
    """Copy *data* into *targets*, filling one after the other. Return the number of bytes copied."""
    view = memoryview(data)
    position = 0
    for target in targets:
        piece = view[position : position + target.nbytes]
        target[: piece.nbytes] = piece
        position += piece.nbytes
    return position


def get_first(store: ObjectStore, key: str, num_bytes: int) -> memoryview:
    """
    Return the first *num_bytes* bytes of the object *key*, or all of it if it is smaller.

    Raises:
        KeyError, StoreError: As :meth:`ObjectStore.get_into`.
    """
    memory = memoryview(bytearray(num_bytes))
    return memory[: store.get_into(key, 0, [memory])]


def get_at_most(store: ObjectStore, key: str, max_bytes: int) -> bytes:
    """
    Return the object *key*, and read no more than *max_bytes* + 1 bytes of it.

    Raises:
        ValueError: It is larger than *max_bytes*.
        KeyError, StoreError: As :meth:`ObjectStore.get_into`.
    """
    for size in (min(_FIRST_BYTES, max_bytes + 1), max_bytes + 1):
        data = get_first(store, key, size)
        if len(data) < size:
            return bytes(data)
    raise ValueError(f"it has more than {max_bytes} bytes")
