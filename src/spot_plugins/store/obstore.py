"""Objects in S3, Google Cloud Storage and Azure through obstore: the fast path."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from .base import scatter
from .object_names import check_object_key, is_object_key
from .obstore_options import Setup, UnmappedOptionError, read_options
from .put_if_absent import ConditionalPuts
from .store_errors import Secrets, error_code, failures, http_status, raise_if_no_bucket

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

    from .obstore_stalls import WatchedPuts

_SMALL_BYTES: Final = 256 * 1024  # at less than 20 kB/s even these are given up


class ObstoreStore:
    """
    One object per key below *url*.

    A put reads the caller's memory directly, and costs a tenth of the processor time of :class:`FsspecStore`.

    Nothing is asked of the service before the first operation. An instance does not survive a fork.

    Args:
        url: Where the run lives, for example ``s3://bucket/run-7``.
        storage_options: Arguments of the fsspec file system for the same URL. Their values are never printed.

    Raises:
        UnmappedOptionError: obstore has nothing like one of *storage_options*. Take :class:`FsspecStore`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._url = url.rstrip("/")
        self._secrets = Secrets(url, storage_options or {})
        scheme, _, path = self._url.partition("://")
        netloc, _, self._root = path.partition("/")
        if self._root and not is_object_key(self._root):
            raise UnmappedOptionError("path in the URL")
        self._set_up = read_options(scheme, netloc, storage_options or {})
        self._lock = threading.Lock()
        self._opened: _Clients | None = None
        self._conditional = ConditionalPuts()

    def __repr__(self) -> str:
        return f"ObstoreStore({self._secrets.hide(self._url)!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, replacing what was there."""
        check_object_key(key)
        with failures("put", key, self._secrets):
            self._write(key, data, "overwrite")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless something is there. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if there is no such operation. Otherwise that it failed is
                "unknown", not "no": the object may be there.
        """
        check_object_key(key)
        with failures("put", key, self._secrets):
            return self._conditional.put(key, lambda: self._create(key, data))

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if there is none."""
        if is_object_key(key):
            import obstore

            with failures("get", key, self._secrets), _unless_missing():
                return obstore.get(self._open().plain, self._path(key)).bytes().to_bytes()
        raise KeyError(key)

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object from byte *start* on into *targets*. Return how many bytes there were."""
        if is_object_key(key):
            import obstore

            num_bytes = sum(target.nbytes for target in targets)
            with failures("get", key, self._secrets), _unless_missing():
                client, path = self._open().plain, self._path(key)
                if not num_bytes:
                    obstore.head(client, path)
                    return 0
                try:
                    answer = obstore.get(client, path, options={"range": (start, start + num_bytes)})
                except obstore.exceptions.BaseError as error:
                    if http_status(error) != 416:
                        raise
                    return 0  # the object ends before the range begins
                return scatter(memoryview(answer.bytes()), targets)
        raise KeyError(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as the service lists them now."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_object_key(directory):
            return iter(())
        import obstore

        with failures("keys", prefix, self._secrets):
            client = self._open().plain
            # Its prefix is a folder, which may not end within a name.
            folder = "/".join(filter(None, (self._root, directory)))
            start = self._path("")
            found = []
            for page in obstore.list(client, prefix=folder or None):
                for entry in page:
                    path = entry["path"]
                    # Consoles mark a folder by an empty object whose name ends in a slash, which is lost here.
                    if path.startswith(start + prefix) and (entry["size"] or _is_there(client, path)):
                        found.append(path.removeprefix(start))
            return iter(sorted(key for key in found if is_object_key(key)))

    def delete(self, key: str) -> None:
        """Remove the object. Do nothing if there is none."""
        if is_object_key(key):
            import obstore

            with failures("delete", key, self._secrets), _unless_missing():
                obstore.delete(self._open().plain, self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if self._root else key

    def _open(self) -> _Clients:
        """Return the clients. Makes them on the first call."""
        with self._lock:
            if self._opened is None:
                self._opened = _Clients.make(self._set_up())
            return self._opened

    def _create(self, key: str, data: bytes) -> bool:
        import obstore

        try:
            self._write(key, data, "create")
        except obstore.exceptions.AlreadyExistsError as error:
            # S3 answers 409 to one of two that came at once: it does not know yet which of them wins.
            if http_status(error) == 409 and error_code(error) != "BlobAlreadyExists":
                raise
            return False
        return True

    def _write(self, key: str, data: bytes | memoryview, mode: str) -> None:
        import obstore

        clients, path = self._open(), self._path(key)
        view = _bytes_of(data)
        options: dict[str, Any] = {"mode": mode, "use_multipart": False}
        if len(view) <= _SMALL_BYTES or clients.puts is None:
            client = clients.plain if len(view) <= _SMALL_BYTES else clients.patient
            obstore.put(client, path, view or b"", **options)
        else:
            clients.puts.run(lambda part: obstore.put_async(clients.patient, path, part, **options), view)


@dataclass(frozen=True, slots=True)
class _Clients:
    """One service as seen with and without a read timeout."""

    plain: Client
    """Waits for an answer for so long from the beginning of the request."""
    patient: Client
    """Waits as long as it takes."""
    puts: WatchedPuts | None
    """Watches over the puts of *patient*; None if the user wants no timeout."""

    @classmethod
    def make(cls, setup: Setup) -> _Clients:
        import obstore.store

        from .obstore_stalls import WatchedPuts  # asyncio, which a run in a directory need not load

        def client(**timeout: timedelta) -> Any:
            return getattr(obstore.store, setup.kind)(
                config=setup.config,
                client_options={**setup.client, **timeout},
                # The caller knows how long it can wait. And a conditional put that is repeated because its answer
                # got lost finds its own object, and takes it for somebody else's.
                retry_config={"max_retries": 0},
                **({"credential_provider": setup.credentials} if setup.credentials else {}),
            )

        patient = client()
        if (stall_s := setup.read_timeout_s) is None:
            return cls(patient, patient, None)
        return cls(client(read_timeout=timedelta(seconds=stall_s)), patient, WatchedPuts(stall_s))


@contextmanager
def _unless_missing() -> Iterator[None]:
    """Do nothing about an object that is not there, but raise if its whole bucket is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise_if_no_bucket(error)


def _is_there(client: Client, path: str) -> bool:
    import obstore

    try:
        obstore.head(client, path)
    except FileNotFoundError:
        return False
    return True


def _bytes_of(data: bytes | memoryview) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")
