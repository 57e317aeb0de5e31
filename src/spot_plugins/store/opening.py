"""Opening of the store that a URL names."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, Final

import xxhash

from ..errors import ConfigError
from .base import ObjectStore
from .fsspec import EXAMPLES, OBJECT_STORES, FsspecStore
from .local import LocalStore
from .memory import MemoryStore
from .obstore import ObstoreStore
from .obstore_options import UnmappedOptionError
from .store_errors import Secrets

logger = logging.getLogger(__name__)

_LOCAL_SCHEMES: Final = ("file", "local", "")
_EXTRAS: Final = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
_OBSTORE: Final = (0, 11)  # the oldest version that deletes one object with one request
_CHECKED_SCHEMES: Final = OBJECT_STORES | {"hf"}
_ARGUMENTS_OF_ALL: Final = frozenset(
    {
        "use_listings_cache",
        "listings_expiry_time",
        "max_paths",
        "skip_instance_cache",
        "asynchronous",
        "loop",
        "batch_size",
    }
)
"""Arguments that every file system of fsspec takes, though its signature does not name them."""

_LOST_SLASH: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/(?!/)")

_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def open_store(url: str, storage_options: Mapping[str, Any] | None = None) -> ObjectStore:
    """
    Return the store of the run at *url*. This sends no request to the service, but :func:`check_writable` does.

    S3, Google Cloud Storage and Azure are accessed through obstore if it is installed and has an equivalent for each of
    the *storage_options*. Otherwise they are accessed through fsspec.

    Args:
        url: A plain path or ``file://`` for a directory. ``memory://name`` for a store that all callers in this process
            share by its name. Or any other URL that fsspec knows.
        storage_options: Arguments of the fsspec file system. A directory needs none. They are never printed.

    Raises:
        ConfigError: *url* cannot work, or the package for its scheme is missing. The message names the remedy.
    """
    scheme = _scheme(url)
    if scheme in _LOCAL_SCHEMES:
        if storage_options:
            raise ConfigError(
                f"storage_options={_names(storage_options)} with url={url!r}: a directory takes none. Leave them out, "
                f"or give the URL of a service"
            )
        return LocalStore(_local_path(url))
    if scheme == "memory":
        with _memory_lock:
            return _memory_stores.setdefault(url.rstrip("/"), MemoryStore())
    if scheme in OBJECT_STORES and (fast := _fast_store(url, storage_options)) is not None:
        return fast
    _check_options(scheme, _file_system_class(url, scheme), storage_options or {})
    if scheme not in OBJECT_STORES:
        logger.warning(
            "%s:// is not known to show objects whole: a reader may see half an object, and two runs at one URL are "
            "not detected. Use one of %s",
            scheme,
            EXAMPLES,
        )
    return FsspecStore(url, storage_options)


def is_local(url: str) -> bool:
    """Return whether *url* is a directory of this machine: a plain path, ``file://`` or ``local://``."""
    return _scheme(url) in _LOCAL_SCHEMES


def _fast_store(url: str, storage_options: Mapping[str, Any] | None) -> ObstoreStore | None:
    """Return the store of *url* over obstore. None if obstore is not installed or lacks an option."""
    if "::" in url or not url.partition("://")[2].strip("/"):
        return None
    try:
        from obstore import __version__ as version
    except ImportError:
        return None
    if tuple(int(number) for number in version.split(".")[:2]) < _OBSTORE:
        logger.info("obstore %s is too old: the store is accessed through fsspec, which is slower", version)
        return None
    try:
        return ObstoreStore(url, storage_options)
    except UnmappedOptionError as unmapped:
        logger.info("%s is unknown to obstore: the store is accessed through fsspec, which is slower", unmapped)
        return None


def local_directory(url: str, given: str | None = None) -> str | None:
    """
    Return the directory for local copies of the run at *url*: *given*, or a directory for this user and run.

    None if *given* is None and the run itself is on a local disk.

    Raises:
        ConfigError: The directory belongs to another user, who could read the weights.
    """
    if given is not None:
        return os.path.abspath(given)
    if is_local(url):
        return None
    own = os.path.join(tempfile.gettempdir(), f"spot_plugins-{os.getuid()}")
    with contextlib.suppress(OSError):  # the first push reports a disk that cannot be written to, by an event
        os.makedirs(own, mode=0o700, exist_ok=True)
        if os.stat(own).st_uid != os.getuid():
            raise ConfigError(
                f"local_dir={own!r} belongs to another user, who could read the weights: give another directory"
            )
    return os.path.join(own, xxhash.xxh3_64_hexdigest(url.encode()))


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _local_path(url: str) -> str:
    if "://" in url:
        path = url.partition("://")[2]
        if not path.startswith("/"):
            raise ConfigError(f"url={url!r} names a host, not a directory: write three slashes, as in file:///data/run")
        return path
    if _LOST_SLASH.match(url):
        raise ConfigError(f"url={url!r} is not a path, and as a URL it lacks a slash: give one such as {EXAMPLES}")
    return os.path.expanduser(url)


def _file_system_class(url: str, scheme: str) -> type:
    """Return the class of fsspec that opens *url*. Raise :exc:`ConfigError` if there is none."""
    shown = f"url={Secrets(url, {}).hide(url)!r}"
    if "::" in url:
        raise ConfigError(f"{shown} chains file systems, which may show old objects: give a URL with one file system")
    if not url.partition("://")[2].strip("/"):
        raise ConfigError(f"{shown} names no bucket: give one, as in {scheme}://bucket/run")
    from fsspec import get_filesystem_class

    try:
        found: type = get_filesystem_class(scheme)
    except ValueError:
        raise ConfigError(f"{shown} has the unknown scheme {scheme!r}: give one such as {EXAMPLES}") from None
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f'pip install "spot_plugins[{extra}]"' if extra else f"{error}"
        raise ConfigError(f"{shown} needs a package for {scheme}:// that is not installed: {remedy}") from error
    return found


def _check_options(scheme: str, file_system: type, options: Mapping[str, Any]) -> None:
    """
    Raise :exc:`ConfigError` if no argument of *file_system* has the name of one of *options*.

    The file systems of services take any argument, and ignore those that they do not know. Other file systems pass on
    what they do not know, so their options are not checked.
    """
    if scheme not in _CHECKED_SCHEMES:
        return
    known = _ARGUMENTS_OF_ALL | {
        name for each in file_system.__mro__ if "__init__" in vars(each) for name in _arguments(vars(each)["__init__"])
    }
    if file_system.__name__ == "S3FileSystem":  # it passes the others on
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]

        known |= _arguments(AioSession.__init__)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"Did you mean {close[0]!r}?" if close else f"It takes {', '.join(sorted(known))}"
            raise ConfigError(
                f"storage_options has {name!r}, which {file_system.__name__} for {scheme}:// does not know. {remedy}"
            )


def _arguments(function: Any) -> set[str]:
    """Return the names of the arguments of *function*, without those that take any."""
    return {
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }


def _names(options: Mapping[str, Any]) -> str:
    """Return the names of *options*, without the values, which may be secret."""
    return f"{{{', '.join(f'{name!r}: ***' for name in options)}}}"
