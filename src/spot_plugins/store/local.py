"""Objects as files below a directory: a local disk, or a shared file system such as NFS."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Final

from ..errors import StoreError
from .direct_io import write_whole
from .object_names import TEMP_DIRECTORY, check_object_key, is_object_key

_STALE_S: Final = 3600.0  # an unfinished file this old belongs to a writer that was killed
_MOVE_TRIES: Final = 100  # each failure means that a concurrent delete got on

_PERMANENT: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}
    | {errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EFBIG}
)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})  # what link(2) says on FAT or FUSE
_REASONS: Final[dict[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; choose another directory or have its owner allow it",
    errno.EPERM: "no permission; choose another directory or have its owner allow it",
    errno.ENOENT: "the directory cannot be made; choose another",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
}


class LocalStore:
    """
    One file per object below *root*, which need not exist yet.

    An object is written to a file of its own below ``.spot-tmp``, forced to disk, and then given its name in
    one step; readers see it from that step on, and a writer that dies before it leaves only the unfinished
    file. Those of killed writers are removed by the first put of a later store.

    The key of one object must not be a folder in the key of another, as in ``a`` and ``a/b``.
    """

    def __init__(self, root: str) -> None:
        # The pusher may run in another working directory.
        self._root = os.path.abspath(root)
        self._swept = False

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write *data* under *key*, replacing what was there. It is on the disk when this returns."""
        check_object_key(key)
        with self._failures("put", key):
            self._place(key, data, os.replace)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """
        Write *data* under *key* unless something is there. Return whether it was written.

        Raises:
            StoreError: With ``retryable=False`` if the file system has no hard links.
        """
        check_object_key(key)
        with self._failures("put", key):
            try:
                self._place(key, data, _link)
            except FileExistsError:
                return False
            return True

    def get(self, key: str) -> bytes:
        """Return the whole object. Raise :exc:`KeyError` if there is none."""
        with self._reading(key) as file:
            return file.readall()

    def get_into(self, key: str, start: int, targets: Sequence[memoryview]) -> int:
        """Read the object from byte *start* on into *targets*. Return how many bytes there were."""
        with self._reading(key) as file:
            num_bytes = 0
            for target in targets:
                view = target
                while view.nbytes and (count := os.preadv(file.fileno(), [view], start + num_bytes)):
                    num_bytes += count  # Linux reads 2 GiB at once at most
                    view = view[count:]
                if view.nbytes:
                    break
            return num_bytes

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with *prefix*, in lexical order, as they are now."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_object_key(directory):
            return iter(())
        with self._failures("keys", prefix):
            return iter(sorted(key for key in self._walk(directory) if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        """Remove the object and the directories that it leaves empty. Do nothing if there is none."""
        if not is_object_key(key):
            return
        path = self._path(key)
        with self._failures("delete", key):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                os.unlink(path)
            for _ in range(key.count("/")):
                path = os.path.dirname(path)
                try:
                    os.rmdir(path)  # refuses a directory with anything in it
                except OSError:
                    return

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key)

    def _place(self, key: str, data: bytes | memoryview, move: Callable[[str, str], None]) -> None:
        """Write *data* to a file of its own, then give it the name of *key* with *move*: all or nothing."""
        path = self._path(key)
        temp = self._write_temp(data)
        try:
            for tries_left in reversed(range(_MOVE_TRIES)):
                try:
                    _make_directory(os.path.dirname(path))
                    move(temp, path)
                    break
                except FileNotFoundError:
                    # delete() removed the empty directory in between.
                    if not tries_left:
                        raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)
        with suppress(FileNotFoundError):  # someone else deleted it already
            _sync_directory(os.path.dirname(path))

    def _write_temp(self, data: bytes | memoryview) -> str:
        """Write *data* to a new unfinished file, force it to disk, and return its path."""
        directory = os.path.join(self._root, TEMP_DIRECTORY)
        _make_directory(directory)
        if not self._swept:
            _remove_stale(directory)
            self._swept = True
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

    def _walk(self, directory: str) -> Iterator[str]:
        """Yield the keys below *directory*, ``""`` for all, in no order."""
        try:
            entries = list(os.scandir(os.path.join(self._root, directory)))
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing was put here, or the last object has just been deleted
        for entry in entries:
            key = f"{directory}/{entry.name}" if directory else entry.name
            if entry.is_file():
                yield key
            elif key != TEMP_DIRECTORY:
                yield from self._walk(key)

    @contextmanager
    def _reading(self, key: str) -> Iterator[FileIO]:
        if not is_object_key(key):
            raise KeyError(key)
        with self._failures("get", key):
            try:
                with open(self._path(key), "rb", buffering=0) as file:
                    yield file
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise KeyError(key) from None

    @contextmanager
    def _failures(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            reason = f"{_REASONS.get(number, error.strerror)}, at {self._root} ({errno.errorcode.get(number)})"
            raise StoreError(operation, key, reason, retryable=number not in _PERMANENT) from error
        except _NoHardLinksError as error:
            reason = f"the file system at {self._root} has no put-if-absent, for it has no hard links"
            raise StoreError(operation, key, reason, retryable=False) from error


class _NoHardLinksError(Exception):
    pass


def _link(source: str, target: str) -> None:
    """Give *source* a second name, unless *target* exists: of several racing links exactly one succeeds."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _NoHardLinksError from error
        raise


def _make_directory(directory: str) -> None:
    """Make *directory* and its parents, and force their names to disk."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    _make_directory(parent)
    with suppress(FileExistsError):
        os.mkdir(directory)
        _sync_directory(parent)


def _sync_directory(directory: str) -> None:
    """Force the names in *directory* to disk. The bytes of its files are not meant."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove_stale(directory: str) -> None:
    """Remove the unfinished files that nobody writes any more. One removed too early only fails that put."""
    newest = time.time() - _STALE_S
    with suppress(OSError):
        for entry in list(os.scandir(directory)):
            with suppress(FileNotFoundError):  # another store sweeps too
                if entry.stat().st_mtime < newest:
                    os.unlink(entry.path)
