"""Store in any file system of fsspec, such as S3 through s3fs, Google Cloud Storage and Azure."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ..errors import ConfigError, StoreError
from ..locations import EXAMPLES
from .adlfs import AzureClient
from .base import ObjectInfo, scatter
from .fsspec_client import FsspecClient
from .gcsfs import GoogleClient
from .object_names import check_object_key, is_object_key
from .put_if_absent import ConditionalPuts
from .redaction import Secrets
from .s3fs import S3Client
from .service_answers import is_existing, is_missing, is_past_end
from .store_errors import as_store_errors

_CLIENTS: Final[dict[str, type[FsspecClient]]] = {
    **dict.fromkeys(("s3", "s3a"), S3Client),
    **dict.fromkeys(("gs", "gcs"), GoogleClient),
    **dict.fromkeys(("abfs", "abfss", "az"), AzureClient),
}
OBJECT_STORES: Final = frozenset(_CLIENTS)
"""Schemes of services that show an object whole or not at all, and have put-if-absent."""


class FsspecStore:
    """
    Store with one object per key below *url*.

    S3, Google Cloud Storage and Azure guarantee that an object is whole, and visible to all at once. A file system that
    writes in place, such as ``sftp://``, shows the beginning of an object during its put, and has no put-if-absent.

    The first operation sends the first request. An instance cannot be used in a process that was forked from its own.

    Args:
        url: The URL of the run, for example ``s3://bucket/run-7``.
        storage_options: Arguments of the fsspec file system. Their values are never printed.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._options = dict(storage_options or {})
        self._client = _CLIENTS.get(self._scheme, FsspecClient)()
        self._secrets = Secrets(url, self._options)
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._conditional = ConditionalPuts()

    def __repr__(self) -> str:
        return f"FsspecStore({self._secrets.hide(self._url)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, and replace an existing object."""
        check_object_key(key)
        with as_store_errors("put", key, self._secrets):
            self._write(key, bytes(data), "overwrite")  # because clients of services take no memoryview

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless the object exists. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if the store has no put-if-absent. After any other failure the object
                may have been written, for example if only the answer got lost.
        """
        check_object_key(key)
        if self._scheme not in OBJECT_STORES:
            raise StoreError("put", key, f"{self._scheme}:// has no put-if-absent", retryable=False)
        with as_store_errors("put", key, self._secrets):
            return self._conditional.put(key, lambda: self._create(key, data))

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if it does not exist."""
        return self._get(key, None, None)

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object into *targets*, beginning with byte *start*. Return the number of bytes read."""
        # One byte at least, because some clients ask nothing of the service for an empty range.
        num_bytes = max(1, sum(target.nbytes for target in targets))
        return scatter(self._get(key, start, start + num_bytes), targets)

    def _get(self, key: str, start: int | None, stop: int | None) -> bytes:
        if not is_object_key(key):
            raise KeyError(key)
        with as_store_errors("get", key, self._secrets):
            file_system, root = self._open()
            try:
                return bytes(file_system.cat_file(f"{root}/{key}", start=start, end=stop, **self._client.get_options))
            except Exception as error:
                if is_past_end(error):
                    return b""
                if not is_missing(error):
                    raise
        raise KeyError(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as the service lists them now."""
        return (found.key for found in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with *prefix*, in lexical order of the keys, as the service lists them."""
        with as_store_errors("list", prefix, self._secrets):
            file_system, root = self._open()
            try:
                found = self._client.find(file_system, root, prefix)
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise
                return iter(())
            start = f"{root}/"
            objects = (
                replace(each, key=each.key.removeprefix(start)) for each in found if each.key.startswith(start + prefix)
            )
            # Consoles mark a folder by an empty object whose name ends in a slash. Its name is not a key.
            return iter(sorted(each for each in objects if is_object_key(each.key)))

    def delete(self, key: str) -> None:
        """Delete the object. Do nothing if it does not exist."""
        if not is_object_key(key):
            return
        with as_store_errors("delete", key, self._secrets):
            file_system, root = self._open()
            try:
                file_system.rm_file(f"{root}/{key}")
            except Exception as error:
                if not is_missing(error):
                    raise

    def _open(self) -> tuple[Any, str]:
        """Return the file system, and the path of *url* in it. The first call makes the file system."""
        with self._lock:
            if self._opened is None:
                try:
                    opened = self._client.open(self._url, self._options)
                except (AttributeError, TypeError) as error:  # a missing argument, or a URL of another form
                    raise self._unusable(f"{type(error).__name__}: {error}") from error
                self._forget_listings(opened[0])
                self._client.prepare(opened[0], self._options, self._secrets)
                self._opened = opened
        self._client.renew(self._opened[0], self._secrets)
        return self._opened

    def _forget_listings(self, file_system: Any) -> None:
        """Let *file_system* cache no listing, because another process may have written since."""
        from fsspec.dircache import DirCache

        cache = getattr(file_system, "dircache", None)
        if not isinstance(cache, DirCache):
            raise self._unusable(f"{type(file_system).__name__} keeps old listings, so new checkpoints stay unseen")
        cache.use_listings_cache = False

    def _unusable(self, reason: str) -> ConfigError:
        text = f"url={self._secrets.hide(self._url)!r} cannot hold a run: {self._secrets.hide(reason)}"
        return ConfigError(f"{text}. Give a URL such as {EXAMPLES}, or the storage_options that it needs")

    def _create(self, key: str, data: bytes) -> bool:
        """Write *data* if the object does not exist. Return whether it was written."""
        try:
            self._write(key, bytes(data), "create")
        except Exception as error:
            if not is_existing(error):
                raise
            return False
        return True

    def _write(self, key: str, data: bytes, mode: str) -> None:
        file_system, root = self._open()
        path = f"{root}/{key}"
        if self._scheme not in OBJECT_STORES:
            file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        file_system.pipe_file(path, data, mode=mode, **self._client.put_options)
