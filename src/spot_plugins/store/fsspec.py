"""Objects in any file system that fsspec knows: S3 through s3fs, Google Cloud Storage, Azure, and others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..errors import StoreError
from .base import scatter
from .object_names import check_object_key, is_object_key
from .put_if_absent import ConditionalPuts
from .s3fs import GET_OPTIONS, PUT_OPTIONS, prepare, s3_options
from .store_errors import Secrets, error_code, failures, raise_if_no_bucket

_S3: Final = frozenset({"s3", "s3a"})
OBJECT_STORES: Final = _S3 | {"gs", "gcs", "abfs", "abfss", "az"}
"""Schemes of services that show an object whole or not at all, and that have put-if-absent."""


class FsspecStore:
    """
    One object per key below *url*.

    That objects are whole, and seen at once, is what the service promises: S3, Google Cloud Storage and Azure
    do. A file system that writes in place, such as ``sftp://``, shows the beginning of an object while it is
    being written, and has no put-if-absent.

    Nothing is asked of the service before the first operation. An instance does not survive a fork.

    Args:
        url: Where the run lives, for example ``s3://bucket/run-7``.
        storage_options: Arguments of the fsspec file system. Their values are never printed.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._options = dict(storage_options or {})
        self._secrets = Secrets(url, self._options)
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._conditional = ConditionalPuts()

    def __repr__(self) -> str:
        return f"FsspecStore({self._secrets.hide(self._url)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, replacing what was there."""
        check_object_key(key)
        with failures("put", key, self._secrets):
            self._write(key, bytes(data), "overwrite")  # clients of services take bytes only

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless something is there. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if there is no such operation. Otherwise that it failed is
                "unknown", not "no": the object may be there.
        """
        check_object_key(key)
        if self._scheme not in OBJECT_STORES:
            raise StoreError("put", key, f"{self._scheme}:// has no put-if-absent", retryable=False)
        with failures("put", key, self._secrets):
            return self._conditional.put(key, lambda: self._create(key, data))

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if there is none."""
        return self._get(key, None, None)

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object from byte *start* on into *targets*. Return how many bytes there were."""
        stop = start + sum(target.nbytes for target in targets)
        return scatter(self._get(key, start, stop), targets)

    def _get(self, key: str, start: int | None, stop: int | None) -> bytes:
        if not is_object_key(key):
            raise KeyError(key)
        with failures("get", key, self._secrets):
            file_system, root = self._open()
            options = GET_OPTIONS if self._scheme in _S3 else {}
            try:
                return bytes(file_system.cat_file(f"{root}/{key}", start=start, end=stop, **options))
            except FileNotFoundError as error:
                raise_if_no_bucket(error)
            except OSError as error:
                if error_code(error) != "InvalidRange":
                    raise
                return b""  # the object ends before the range begins
        raise KeyError(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as the service lists them now."""
        with failures("keys", prefix, self._secrets):
            file_system, root = self._open()
            try:
                names = _find(file_system, root, prefix, self._scheme in _S3)
            except FileNotFoundError as error:
                raise_if_no_bucket(error)
                return iter(())
            keys = (name.removeprefix(f"{root}/") for name in names if name.startswith(f"{root}/"))
            # Consoles mark a folder by an empty object whose name ends in a slash: that is no key.
            return iter(sorted(key for key in keys if key.startswith(prefix) and is_object_key(key)))

    def delete(self, key: str) -> None:
        """Remove the object. Do nothing if there is none."""
        if not is_object_key(key):
            return
        with failures("delete", key, self._secrets):
            file_system, root = self._open()
            try:
                file_system.rm_file(f"{root}/{key}")
            except FileNotFoundError as error:
                raise_if_no_bucket(error)

    def _open(self) -> tuple[Any, str]:
        """Return the file system, and *url* as it spells it. Makes it on the first call."""
        with self._lock:
            if self._opened is None:
                # Here, for it takes 0.2 s, which a run in a directory need not pay.
                from fsspec.core import url_to_fs

                is_s3 = self._scheme in _S3
                options = s3_options(self._options) if is_s3 else self._options
                file_system, root = url_to_fs(self._url, **options, skip_instance_cache=True)
                # Another process may have written since the last listing.
                file_system.dircache.use_listings_cache = False
                if is_s3:
                    prepare(file_system)
                self._opened = file_system, root
            return self._opened

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self._write(key, bytes(data), "create")
        except FileExistsError:
            return False
        except OSError as error:
            if error_code(error) in ("PreconditionFailed", "412"):
                return False
            raise
        return True

    def _write(self, key: str, data: bytes, mode: str) -> None:
        file_system, root = self._open()
        path = f"{root}/{key}"
        if self._scheme not in OBJECT_STORES:
            file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        options = PUT_OPTIONS if self._scheme in _S3 else {}
        file_system.pipe_file(path, data, mode=mode, **options)


def _find(file_system: Any, root: str, prefix: str, by_prefix: bool) -> list[str]:
    """Return the paths of the objects below *root* that may begin with *prefix*."""
    if by_prefix:
        return list(file_system.find(root, prefix=prefix))
    directory = prefix.rpartition("/")[0]
    return list(file_system.find(f"{root}/{directory}" if directory else root))
