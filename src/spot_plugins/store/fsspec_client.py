"""Use of a file system of fsspec as a store, for those of which nothing else is known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from .base import ObjectInfo
from .redaction import Secrets


class FsspecClient:
    """
    Calls of one file system of fsspec for which fsspec has no common form.

    Each request is sent once, and given up if no byte moves for a while. The client of a service has to see to both.
    """

    put_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of ``pipe_file``."""
    get_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of ``cat_file``."""

    def open(self, url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the file system of *url*, and the path of *url* in it."""
        # Imported here, because this takes 0.2 s and a run in a directory does not need it.
        from fsspec.core import url_to_fs

        file_system, root = url_to_fs(url, **options, skip_instance_cache=True)
        return file_system, root

    def prepare(self, file_system: Any, options: Mapping[str, Any], secrets: Secrets) -> None:
        """
        Change settings for which *file_system* has no option. Called once, before its first request.

        *secrets* learns the credentials that are sent, because they may not be among the *options*.
        """

    def renew(self, file_system: Any, secrets: Secrets) -> None:
        """Renew credentials that are about to expire. Called before each operation, in the thread of the caller."""

    def find(self, file_system: Any, root: str, prefix: str) -> list[ObjectInfo]:
        """Return the objects below *root* that may begin with *prefix*, with their paths in the place of keys."""
        directory = prefix.rpartition("/")[0]
        return listed(file_system.find(f"{root}/{directory}" if directory else root, detail=True))


def listed(found: Mapping[str, Mapping[str, Any]]) -> list[ObjectInfo]:
    """Return *found*, a detailed listing of fsspec, whose file systems have several names for the time."""
    return [
        ObjectInfo(path, int(entry.get("size") or 0), seconds_of(entry.get("LastModified", entry.get("mtime"))))
        for path, entry in found.items()
    ]


def seconds_of(moment: Any) -> float | None:
    """Return *moment* in seconds since 1970, or None if it is no time."""
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if isinstance(moment, int | float) else None
