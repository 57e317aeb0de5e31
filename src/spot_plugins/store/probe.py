"""Check before training starts that a store can be used."""

from __future__ import annotations

import uuid

from ..errors import ConfigError, StoreError
from .base import ObjectStore


def check_writable(store: ObjectStore) -> None:
    """
    Put, get, list and delete a small object below ``probe/``.

    Raises:
        ConfigError: The store refuses one of these operations permanently, for example because of missing permissions,
            bad credentials or a missing bucket. The message names the remedy.
        StoreError: The store does not answer. A later try may succeed.
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
            f"{store!r} cannot be used: an object was missing, or had other content, right after it was put. "
            f"Give the URL of a service with read-after-write consistency"
        )
