"""The directory of this user for local copies, in a folder where every user of the machine may write."""

from __future__ import annotations

import os
import stat
import tempfile

from ..errors import ConfigError, StoreError
from .local import LocalStore


def own_directory() -> str:
    """Return the path of this user's directory for local copies of all runs."""
    return os.path.join(tempfile.gettempdir(), f"spot_plugins-{os.getuid()}")


def make_private(path: str) -> None:
    """
    Make the directory *path* for this user alone, or take its group's and the others' rights away.

    Raises:
        ConfigError: Something else is there, which another user could read or replace.
        OSError: The directory cannot be made.
    """
    try:
        os.mkdir(path, mode=0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(
                f"local_dir={path!r} is a file or a link that somebody has put there: remove it, or give another "
                f"directory"
            ) from None
        if found.st_uid != os.getuid():
            raise ConfigError(
                f"local_dir={path!r} belongs to another user, who could read the weights: give another directory"
            ) from None
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.chmod(path, 0o700)  # a link cannot have taken its place: only its owner, and root, could remove it


def open_local(directory: str) -> LocalStore:
    """
    Return the store of local copies in *directory*. Below :func:`own_directory` each put looks who may read them.

    This touches no disk.
    """
    return _PrivateStore(directory)


def is_below_own(directory: str) -> bool:
    """Return whether *directory* is one that this package has chosen, and not one that the user has named."""
    return os.path.dirname(directory) == own_directory()


class _PrivateStore(LocalStore):
    """Store that may lie below :func:`own_directory`, which a cleaner of temporary files may have removed."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """As :meth:`LocalStore.put`. Raises :exc:`StoreError` if another user could read the object."""
        try:
            if is_below_own(self._root):
                make_private(own_directory())
        except (ConfigError, OSError) as error:
            raise StoreError("put", key, str(error), retryable=False) from error
        super().put(key, data)
