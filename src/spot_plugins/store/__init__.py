"""Where the bytes go: one protocol, and who implements it."""

from __future__ import annotations

from .base import ObjectStore
from .fsspec import FsspecStore
from .local import LocalStore
from .memory import MemoryStore
from .obstore import ObstoreStore
from .opening import is_local, local_directory, open_store
from .probe import check_writable
from .retry import patiently

__all__ = [
    "FsspecStore",
    "LocalStore",
    "MemoryStore",
    "ObjectStore",
    "ObstoreStore",
    "check_writable",
    "is_local",
    "local_directory",
    "open_store",
    "patiently",
]
