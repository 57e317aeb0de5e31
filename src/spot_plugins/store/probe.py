"""Proof, before training starts, that a store can be used."""

from __future__ import annotations

import uuid

from ..errors import ConfigError, StoreError
from .base import ObjectStore


def check_writable(store: ObjectStore) -> None:
    """
    Put, get, list and delete a small object under ``probe/``.

    Raises:
        ConfigError: The store refuses one of these for good: no permission, bad credentials, no such bucket.
            The message says what to do.
        StoreError: The store does not answer, or not now; trying again may help.
    """
    key = f"probe/{uuid.uuid4().hex}"
    try:
        store.put(key, key.encode())
        try:
            seen = store.get(key) == key.encode() and list(store.keys(key)) == [key]
        except KeyError:
            seen = False
        finally:
            store.delete(key)
    except StoreError as error:
        if error.retryable:
            raise
        raise ConfigError(f"{store!r} cannot be used: cannot {error.operation} an object: {error.reason}") from error
    if not seen:
        raise ConfigError(
            f"{store!r} cannot be used: an object is not there, or another one, right after it was put. "
            f"Give the URL of a service with read-after-write consistency"
        )
