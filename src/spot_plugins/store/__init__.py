"""
Stores of objects: one protocol, :class:`ObjectStore`, and an implementation for each kind of URL.

The pusher process puts objects, and the training process gets them when it resumes. Both call a store from many
threads. What must never break: a reader gets a whole object or none, and credentials never appear in an error or a log.
This package imports no torch, and imports a client library only when it opens a store that needs it. Begin with
:mod:`.base`, then read :mod:`.opening`.
"""

from __future__ import annotations

from .base import ObjectInfo, ObjectStore, get_at_most, get_first
from .fsspec import FsspecStore
from .leftovers import is_in_memory, sweep
from .local import LocalStore
from .local_disk import HangingDiskError, LimitedStore, LocalDisk
from .memory import MemoryStore
from .obstore import ObstoreStore
from .opening import open_store, scratch_directory
from .private import is_below_own, open_local
from .probe import check_writable, probe, put_speed, unusable
from .redaction import Secrets
from .retry import Patience, attentively, patiently
from .wrapped import PatientStore, RenewedStore

__all__ = [
    "FsspecStore",
    "HangingDiskError",
    "LimitedStore",
    "LocalDisk",
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectStore",
    "ObstoreStore",
    "Patience",
    "PatientStore",
    "RenewedStore",
    "Secrets",
    "attentively",
    "check_writable",
    "get_at_most",
    "get_first",
    "is_below_own",
    "is_in_memory",
    "open_local",
    "open_store",
    "patiently",
    "probe",
    "put_speed",
    "scratch_directory",
    "sweep",
    "unusable",
]
