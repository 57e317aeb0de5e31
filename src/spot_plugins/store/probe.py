"""Check before training starts that a store can be used."""

from __future__ import annotations

import os
import time
import uuid
from typing import Final

from ..errors import ConfigError, StoreError
from .base import ObjectStore

SPEED_BYTES: Final = 1024**2
"""Bytes of the put that is timed. On most links they take no longer than the requests of :func:`probe`."""


def probe(store: ObjectStore) -> None:
    """
    Put, get, list and delete a small object below ``probe/``.

    Raises:
        StoreError: The store refuses one of these operations, or does not answer.
        ConfigError: The object was missing, or had other content, right after it was put.
    """
    key = f"probe/{uuid.uuid4().hex}"
    store.put(key, key.encode())
    try:
        seen = store.get(key) == key.encode() and list(store.keys(key)) == [key]
    except KeyError:
        seen = False
    finally:
        store.delete(key)
    if not seen:
        raise ConfigError(
            f"{store!r} cannot be used: an object was missing, or had other content, right after it was put. "
            f"Give the URL of a service with read-after-write consistency"
        )


def put_speed(store: ObjectStore) -> float | None:
    """
    Put an object of random bytes below ``probe/``, and delete it.

    Call it after :func:`probe`, so that the connection stands. A push puts several objects at a time, so it is faster.

    Returns:
        Bytes per second of the put, without the time that any request takes. None if the store does not take it.
    """
    key = f"probe/{uuid.uuid4().hex}"
    data = os.urandom(SPEED_BYTES)  # because some stores compress
    started = time.monotonic()
    try:
        store.put(key, data)
        put_s = time.monotonic() - started
        store.delete(key)
    except StoreError:
        return None
    delete_s = time.monotonic() - started - put_s
    return SPEED_BYTES / max(put_s - delete_s, put_s / 4, 1e-6)


def check_writable(store: ObjectStore) -> None:
    """
    Call :func:`probe` once.

    Raises:
        ConfigError: The store refuses an operation permanently, for example because of missing permissions, bad
            credentials or a missing bucket. The message names the remedy.
        StoreError: The store does not answer. A later try may succeed.
    """
    try:
        probe(store)
    except StoreError as error:
        if error.retryable:
            raise
        raise unusable(store, error) from error


def unusable(store: ObjectStore, error: StoreError) -> ConfigError:
    """Return the error of a setting that names *store*, which has refused an operation with *error* for good."""
    return ConfigError(f"{store!r} cannot be used: cannot {error.operation} an object: {error.reason}")
