"""Writes past the page cache: they cost a tenth of the processor time, and no memory that training could use."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

_ALIGNMENT: Final = 4096  # what O_DIRECT asks of memory, place and length, on any disk in use
_CHUNK_BYTES: Final = 8 * 1024**2
_SMALLEST: Final = 1024**2  # below, the page cache is as good

_libc = ctypes.CDLL(None)


def write_whole(file: int, data: bytes | memoryview) -> None:
    """
    Write *data* to *file*, which is new and empty. It is on the disk when this returns.

    What lies aligned in writable memory, as shared buffers do, goes past the page cache where the file system has a
    way; the rest goes through it.
    """
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else view
    position = _write_directly(file, view) if _is_aligned(view) else 0
    while position < view.nbytes:
        position += os.write(file, view[position:])  # Linux writes 2 GiB at most in one call
    os.fsync(file)


def _is_aligned(view: memoryview) -> bool:
    if view.nbytes < _SMALLEST or view.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % _ALIGNMENT == 0


def _write_directly(file: int, view: memoryview) -> int:
    """Write all whole blocks of *view*, as far as the file system lets us. Return how many bytes that were."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    end = view.nbytes // _ALIGNMENT * _ALIGNMENT
    position = 0
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        # In one piece, so that it is read back fast. What cannot be reserved is found out when it is written. Not
        # os.posix_fallocate(), which writes a byte into every block, on NFS a request each, where nothing else works.
        _libc.fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(view.nbytes))
        while position < end:
            position += os.write(file, view[position : min(position + _CHUNK_BYTES, end)])
            if position % _ALIGNMENT:  # cut short: a disk that is nearly full
                break
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # no O_DIRECT here
            raise
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return position
