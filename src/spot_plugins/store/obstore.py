"""Store in S3, Google Cloud Storage or Azure through obstore, which is faster than fsspec."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .base import ObjectInfo, scatter
from .object_names import check_object_key, is_object_key
from .obstore_options import Setup, UnmappedOptionError, read_options
from .put_if_absent import ConditionalPuts
from .redaction import Secrets
from .service_answers import find_answer, is_existing, is_missing, is_past_end
from .store_errors import as_store_errors

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

    from .obstore_stalls import StallGuard

_SMALL_BYTES: Final = 256 * 1024  # a put this small is given up if it is slower than 20 kB/s


class ObstoreStore:
    """
    Store with one object per key below *url*.

    A put reads the caller's memory directly, and takes a tenth of the CPU time of :class:`FsspecStore`.

    The first operation sends the first request. An instance cannot be used in a process that was forked from its own.

    Args:
        url: The URL of the run, for example ``s3://bucket/run-7``.
        storage_options: Arguments of the fsspec file system for the same URL. Their values are never printed.

    Raises:
        UnmappedOptionError: obstore has no equivalent for one of *storage_options*. Use :class:`FsspecStore`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._secrets = Secrets(url, storage_options or {})
        scheme, _, path = self._url.partition("://")
        netloc, _, self._root = path.partition("/")
        if self._root and not is_object_key(self._root):
            raise UnmappedOptionError("path in the URL")
        self._is_unordered = netloc.endswith("--x-s3")  # a directory bucket of S3 Express One Zone
        self._set_up = read_options(scheme, netloc, storage_options or {})
        self._lock = threading.Lock()
        self._opened: _Clients | None = None
        self._with_checksum = False
        self._conditional = ConditionalPuts()

    def __repr__(self) -> str:
        return f"ObstoreStore({self._secrets.hide(self._url)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, and replace an existing object."""
        check_object_key(key)
        with as_store_errors("put", key, self._secrets):
            self._write(key, data, "overwrite")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless the object exists. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if the store has no put-if-absent. After any other failure the object
                may have been written, for example if only the answer got lost.
        """
        check_object_key(key)
        with as_store_errors("put", key, self._secrets):
            return self._conditional.put(key, lambda: self._create(key, data))

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if it does not exist."""
        if is_object_key(key):
            import obstore

            with as_store_errors("get", key, self._secrets):
                client = self._open().timed
                with _ignore_missing():
                    return obstore.get(client, self._path(key)).bytes().to_bytes()
        raise KeyError(key)

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object into *targets*, beginning with byte *start*. Return the number of bytes read."""
        if is_object_key(key):
            import obstore

            num_bytes = sum(target.nbytes for target in targets)
            with as_store_errors("get", key, self._secrets):
                client, path = self._open().timed, self._path(key)
                with _ignore_missing():
                    if not num_bytes:
                        obstore.head(client, path)
                        return 0
                    try:
                        answer = obstore.get(client, path, options={"range": (start, start + num_bytes)})
                    except obstore.exceptions.BaseError as error:
                        if not is_past_end(error):
                            raise
                        return 0
                    return scatter(memoryview(answer.bytes()), targets)
        raise KeyError(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as the service lists them now."""
        return (found.key for found in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with *prefix*, in lexical order of the keys, as the service lists them."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_object_key(directory):
            return iter(())
        import obstore.store

        with as_store_errors("list", prefix, self._secrets):
            client = self._open().timed
            # A folder may have thousands of pages. Services that list in order are asked for those of the prefix alone.
            is_ordered = isinstance(client, (obstore.store.S3Store, obstore.store.GCSStore)) and not self._is_unordered
            if is_ordered and (found := self._list(prefix, is_ordered=True)) is not None:
                return iter(found)
            return iter(self._list(prefix, is_ordered=False) or ())

    def _list(self, prefix: str, *, is_ordered: bool) -> list[ObjectInfo] | None:
        """List the objects of *prefix*, from a part alone if the service is in order. None: it turned out not to be."""
        import obstore

        client = self._open().timed
        # obstore takes only whole folders as prefix, so the rest of the prefix is compared below.
        directory, _, rest = prefix.rpartition("/")
        folder = "/".join(filter(None, (self._root, directory)))
        start, first = self._path(""), self._path(prefix)
        offset = first[:-1] if is_ordered and len(rest) > 1 else None
        found, name = [], ""
        for page in obstore.list(client, prefix=folder or None, offset=offset):
            for entry in page:
                path = entry["path"]
                # Consoles mark a folder by an empty object whose name ends in a slash. obstore drops the slash, so an
                # empty object counts only if it exists under the name without one.
                if path.startswith(first) and (entry["size"] or _exists(client, path)):
                    key, modified_at = path.removeprefix(start), entry["last_modified"].timestamp()
                    found.append(ObjectInfo(key, entry["size"], modified_at))
                # Of the name in the folder, because some servers list "a/b" before "a-b".
                before, name = name, path.removeprefix(first.removesuffix(rest)).partition("/")[0]
                if is_ordered and name < before:
                    return None
            if is_ordered and rest and name > rest and not name.startswith(rest):
                break
        return sorted(each for each in found if is_object_key(each.key))

    def delete(self, key: str) -> None:
        """Delete the object. Do nothing if it does not exist."""
        if is_object_key(key):
            import obstore

            with as_store_errors("delete", key, self._secrets):
                client = self._open().timed
                with _ignore_missing():
                    obstore.delete(client, self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if self._root else key

    def _open(self) -> _Clients:
        """Return the clients. The first call makes them."""
        with self._lock:
            if self._opened is None:
                setup = self._set_up()
                if self._with_checksum:
                    setup.config["checksum_algorithm"] = "SHA256"
                self._opened = _Clients.make(setup, self._secrets)
            return self._opened

    def _reopen_with_checksum(self) -> None:
        """Let all later puts send a checksum. It takes CPU time, so only a bucket that demands one gets it."""
        with self._lock:
            if not self._with_checksum:
                self._with_checksum, self._opened = True, None

    def _create(self, key: str, data: bytes) -> bool:
        """Write *data* if the object does not exist. Return whether it was written."""
        import obstore

        try:
            self._write(key, data, "create")
        except obstore.exceptions.AlreadyExistsError as error:
            if not is_existing(error):
                raise
            return False
        return True

    def _write(self, key: str, data: bytes | memoryview, mode: str) -> None:
        try:
            self._send(key, data, mode)
        except Exception as error:
            if not _demands_checksum(error):
                raise
            self._reopen_with_checksum()
            self._send(key, data, mode)

    def _send(self, key: str, data: bytes | memoryview, mode: str) -> None:
        import obstore

        clients, path = self._open(), self._path(key)
        view = _bytes_of(data)
        options: dict[str, Any] = {"mode": mode, "use_multipart": False}
        if len(view) <= _SMALL_BYTES or clients.guard is None:
            client = clients.timed if len(view) <= _SMALL_BYTES else clients.untimed
            obstore.put(client, path, view or b"", **options)
        else:
            clients.guard.run(lambda body: obstore.put_async(clients.untimed, path, body, **options), view)


@dataclass(frozen=True, slots=True)
class _Clients:
    """Two clients of one service: one with a read timeout and one without."""

    timed: Client
    """Client with a read timeout, which begins with the first byte of a request."""
    untimed: Client
    """Client without a read timeout, for large puts."""
    guard: StallGuard | None
    """Guard that gives up puts of *untimed* that stall. None if the user wants no timeout."""

    @classmethod
    def make(cls, setup: Setup, secrets: Secrets) -> _Clients:
        """Return the clients of *setup*. *secrets* learns the credentials that they use."""
        import obstore.store

        from .obstore_stalls import StallGuard  # imports asyncio, which a run in a directory does not need

        credentials = setup.credentials and partial(_learned, setup.credentials, secrets)

        def client(**timeout: timedelta) -> Any:
            return getattr(obstore.store, setup.kind)(
                config=setup.config,
                client_options={**setup.client, **timeout},
                # No retries, because only the caller knows how long it can wait. And if the answer to a conditional
                # put gets lost, a retry finds the object of the first try, and reports that another writer has won.
                retry_config={"max_retries": 0},
                **({"credential_provider": credentials} if credentials else {}),
            )

        untimed = client()
        if (stall_s := setup.read_timeout_s) is None:
            return cls(untimed, untimed, None)
        return cls(client(read_timeout=timedelta(seconds=stall_s)), untimed, StallGuard(stall_s))


def _learned(credentials: Callable[[], dict[str, Any]], secrets: Secrets) -> dict[str, Any]:
    """Return the *credentials*, and add them to *secrets*: they may come from a file, and a server may repeat them."""
    found = credentials()
    secrets.add(found["access_key_id"], found["secret_access_key"], found["token"])
    return found


def _demands_checksum(error: BaseException) -> bool:
    """Return whether *error* says that each put has to have a checksum, as in a bucket of S3 with object lock."""
    answer = find_answer(error)
    return answer is not None and answer.code == "InvalidRequest" and "Content-MD5" in answer.message


@contextmanager
def _ignore_missing() -> Iterator[None]:
    """Suppress the error about a missing object, but not the error about a missing bucket."""
    try:
        yield
    except FileNotFoundError as error:
        if not is_missing(error):
            raise


def _exists(client: Client, path: str) -> bool:
    import obstore

    try:
        obstore.head(client, path)
    except FileNotFoundError:
        return False
    return True


def _bytes_of(data: bytes | memoryview) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")
