"""Stores around another store: one that reads its credentials again, and one that is patient."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..errors import StoreError
from .base import ObjectInfo, ObjectStore
from .obstore import ObstoreStore
from .retry import Patience

_T = TypeVar("_T")


class Wrapped(ABC):
    """Base of a store that passes each operation on through :meth:`_call`."""

    @abstractmethod
    def _call(self, operation: Callable[[ObjectStore], _T]) -> _T: ...

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See :class:`.ObjectStore`."""
        self._call(lambda store: store.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`.ObjectStore`."""
        return self._call(lambda store: store.put_if_absent(key, data))

    def get(self, key: str) -> bytes:
        """See :class:`.ObjectStore`."""
        return self._call(lambda store: store.get(key))

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """See :class:`.ObjectStore`."""
        return self._call(lambda store: store.get_into(key, start, targets))

    def keys(self, prefix: str) -> Iterator[str]:
        """See :class:`.ObjectStore`."""
        return self._call(lambda store: store.keys(prefix))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See :class:`.ObjectStore`."""
        return self._call(lambda store: store.objects(prefix))

    def delete(self, key: str) -> None:
        """See :class:`.ObjectStore`."""
        self._call(lambda store: store.delete(key))


class RenewedStore(Wrapped):
    """
    Store whose client is made anew after a refusal.

    A client reads a credentials file once. So after each refusal the next operation gets a new client, which finds
    credentials that were renewed meanwhile. The caller decides whether and when it tries again.

    Args:
        make: Opens the store. Called at once, and after each refusal.
    """

    def __init__(self, make: Callable[[], ObjectStore]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._store = make()

    def __repr__(self) -> str:
        return repr(self._store)

    @property
    def takes_large_puts(self) -> bool:
        """True if a put of a large object is one request and makes no copy. Clients of fsspec cut and copy it."""
        return isinstance(self._store, ObstoreStore)

    def _call(self, operation: Callable[[ObjectStore], _T]) -> _T:
        store = self._store
        try:
            return operation(store)
        except StoreError as error:
            if not error.retryable:
                with self._lock:
                    if self._store is store:  # else another thread has been refused, too
                        self._store = self._make()
            raise


class PatientStore(Wrapped):
    """
    Store that waits for passing trouble in each operation.

    A put-if-absent that is tried again may find the object of its first try, and then returns False.

    Args:
        store: The store.
        patience: Waits, and says so.
    """

    def __init__(self, store: ObjectStore, patience: Patience) -> None:
        self._store = store
        self._patience = patience

    def __repr__(self) -> str:
        return repr(self._store)

    def _call(self, operation: Callable[[ObjectStore], _T]) -> _T:
        return self._patience(lambda: operation(self._store))
