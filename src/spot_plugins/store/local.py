"""Store in a directory: a local disk, or a shared file system such as NFS."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Final

from ..clock import wall_time
from ..errors import StoreError
from .base import ObjectInfo
from .direct_io import write_whole
from .drilled_disk import before_delete, before_write
from .object_names import TEMP_DIRECTORY, check_object_key, is_object_key

_STALE_S: Final = 3600.0  # age after which an unfinished file belongs to a writer that was killed
_MOVE_TRIES: Final = 100  # each failure means that a concurrent delete removed the directory

_PERMANENT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}
    | {errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EFBIG}
)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})  # errors of link(2) on FAT or FUSE
_REASONS: Final[dict[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; choose another directory or have its owner allow it",
    errno.EPERM: "no permission; choose another directory or have its owner allow it",
    errno.ENOENT: "the directory cannot be made; choose another directory",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
}


class LocalStore:
    """
    Store with one file per object below *root*. The first put makes *root* if it does not exist.

    A put has three steps:

    1. write the object to an unfinished file below ``.spot-tmp``;
    2. force the file to disk;
    3. rename it to its key. Readers see the object from here on.

    A writer that dies before the third step leaves only the unfinished file. The first put of a later store removes the
    unfinished files of dead writers.

    The key of one object must not be a folder in the key of another one, as in ``a`` and ``a/b``.
    """

    def __init__(self, root: str) -> None:
        # Absolute, because the program may change its directory.
        self._root = os.path.abspath(root)
        self._has_removed_stale = False
        self._named: set[str] = set()
        """Directories whose names are on disk, as far as this store knows."""

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, and replace an existing object. The data is on disk when this returns."""
        check_object_key(key)
        with self._as_store_errors("put", key):
            self._write_object(key, data, os.replace)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless the object exists. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if the file system has no hard links.
        """
        check_object_key(key)
        with self._as_store_errors("put", key):
            try:
                self._write_object(key, data, _link)
            except FileExistsError:
                return False
            return True

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if it does not exist."""
        with self._open(key) as file:
            return file.readall()

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object into *targets*, beginning with byte *start*. Return the number of bytes read."""
        with self._open(key) as file:
            num_bytes = 0
            for target in targets:
                view = target
                while view.nbytes and (count := os.preadv(file.fileno(), [view], start + num_bytes)):
                    num_bytes += count  # Linux reads at most 2 GiB per call
                    view = view[count:]
                if view.nbytes:
                    break
            return num_bytes

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as of now."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_object_key(directory):
            return iter(())
        with self._as_store_errors("list", prefix):
            return iter(sorted(key for key in self._walk(directory) if key.startswith(prefix)))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with *prefix*, in lexical order of the keys, as of now."""
        found = []
        for key in self.keys(prefix):
            with self._as_store_errors("list", key), suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(self._path(key))
                found.append(ObjectInfo(key, status.st_size, status.st_mtime))
        return iter(found)

    def delete(self, key: str) -> None:
        """Delete the object and the directories that become empty. Do nothing if the object does not exist."""
        if not is_object_key(key):
            return
        path = self._path(key)
        with self._as_store_errors("delete", key):
            before_delete(self._root)
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                os.unlink(path)
            for _ in range(key.count("/")):
                path = os.path.dirname(path)
                self._named.discard(path)
                try:
                    os.rmdir(path)  # fails if the directory is not empty
                except OSError:
                    return

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key)

    def _write_object(self, key: str, data: bytes | memoryview, move: Callable[[str, str], None]) -> None:
        """Write *data* to an unfinished file, then give it the name of *key* with *move*."""
        before_write(self._root, key)
        path = self._path(key)
        temp = self._write_temp(data)
        try:
            for tries_left in reversed(range(_MOVE_TRIES)):
                try:
                    self._make_directory(os.path.dirname(path))
                    move(temp, path)
                    break
                except FileNotFoundError:
                    # A concurrent delete() removed the empty directory after it was made.
                    if not tries_left:
                        raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)
        with suppress(FileNotFoundError):  # another process has deleted the object already
            _sync_directory(os.path.dirname(path))

    def _write_temp(self, data: bytes | memoryview) -> str:
        """Write *data* to a new unfinished file and force it to disk. Return the path of the file."""
        directory = os.path.join(self._root, TEMP_DIRECTORY)
        self._make_directory(directory)
        if not self._has_removed_stale:
            _remove_stale(directory)
            self._has_removed_stale = True
        path = os.path.join(directory, uuid.uuid4().hex)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_whole(file, data)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(file)
        return path

    def _make_directory(self, directory: str) -> None:
        """
        Make *directory* and its parents, and force their names to disk.

        Another thread or process may have made a directory just now, and not have forced its name to disk yet. So the
        name of each one from the root down is forced to disk once by this store, too.
        """
        is_there = os.path.isdir(directory)
        if is_there and (directory in self._named or not f"{directory}/".startswith(f"{self._root}/")):
            return
        parent = os.path.dirname(directory)
        self._make_directory(parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        try:
            _sync_directory(parent)
        except PermissionError:  # a directory that somebody else has made, in one that only they may read
            if not is_there:
                raise
        self._named.add(directory)

    def _walk(self, directory: str) -> Iterator[str]:
        """Yield the keys below *directory* in no particular order. ``""`` stands for the root."""
        try:
            entries = list(os.scandir(os.path.join(self._root, directory)))
        except (FileNotFoundError, NotADirectoryError):
            return  # no object was put here, or the last one has just been deleted
        for entry in entries:
            key = f"{directory}/{entry.name}" if directory else entry.name
            if entry.is_file():
                yield key
            elif key != TEMP_DIRECTORY:
                yield from self._walk(key)

    @contextmanager
    def _open(self, key: str) -> Iterator[FileIO]:
        if not is_object_key(key):
            raise KeyError(key)
        with self._as_store_errors("get", key):
            try:
                with open(self._path(key), "rb", buffering=0) as file:
                    yield file
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise KeyError(key) from None

    @contextmanager
    def _as_store_errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            reason = f"{_REASONS.get(number, error.strerror)}, at {self._root} ({errno.errorcode.get(number)})"
            raise StoreError(operation, key, reason, retryable=number not in _PERMANENT) from error
        except _NoHardLinksError as error:
            reason = f"the file system at {self._root} has no put-if-absent, because it has no hard links"
            raise StoreError(operation, key, reason, retryable=False) from error


class _NoHardLinksError(Exception):
    """A file system that has no hard links."""


def _link(path: str, name: str) -> None:
    """Give the file at *path* a second *name*. Of several concurrent links to one name, exactly one succeeds."""
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _NoHardLinksError from error
        raise


def _sync_directory(directory: str) -> None:
    """Force the names in *directory* to disk, but not the bytes of its files."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove_stale(directory: str) -> None:
    """Remove old unfinished files. If one is still being written, its put fails and can be repeated."""
    newest = wall_time() - _STALE_S
    with suppress(OSError):
        for entry in list(os.scandir(directory)):
            with suppress(FileNotFoundError):  # another process removes them too
                if entry.stat().st_mtime < newest:
                    os.unlink(entry.path)
