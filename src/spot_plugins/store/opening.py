"""Opening of the store that a URL names."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

import xxhash

from ..config import checked
from ..errors import ConfigError
from ..locations import EXAMPLES, is_local, scheme_of
from .base import ObjectStore
from .fsspec import OBJECT_STORES, FsspecStore
from .local import LocalStore
from .memory import MemoryStore
from .obstore import ObstoreStore
from .obstore_options import UnmappedOptionError
from .private import make_private, own_directory
from .redaction import Secrets, check_credentials

logger = logging.getLogger(__name__)

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
        ConfigError: *url* or a credential cannot work, or the package for its scheme is missing. The message names the
            remedy.
    """
    url = checked("url", url)
    scheme = scheme_of(url)
    if is_local(url):
        if storage_options:
            raise ConfigError(
                f"storage_options={_names(storage_options)} with url={url!r}: a directory takes none. Leave them out, "
                f"or give the URL of a service"
            )
        return LocalStore(url.partition("://")[2] or url)
    if scheme == "memory":
        with _memory_lock:
            return _memory_stores.setdefault(url.rstrip("/"), MemoryStore())
    check_credentials(url, storage_options or {})
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


def scratch_directory(url: str) -> str:
    """
    Return a directory for this user and run in the temporary directory.

    Raises:
        ConfigError: Another user could read what is in the directory.
    """
    own = own_directory()
    with contextlib.suppress(OSError):  # the first push reports a disk that cannot be written to, by an event
        make_private(own)
    path = os.path.join(own, xxhash.xxh3_64_hexdigest(url.encode()))
    with contextlib.suppress(OSError):  # there is none yet
        os.utime(path)  # a run that is used again is no leftover
    return path


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
