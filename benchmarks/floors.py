"""Lower bounds for a checkpoint: the same bytes on a raw disk and through bare clients of S3."""

from __future__ import annotations

import importlib.util
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

PIECE_BYTES = 8 * 1024**2  # of one read or write of the disk
OBJECT_BYTES = 64 * 1024**2
RANGE_BYTES = 16 * 1024**2
NUM_REQUESTS = 8  # in parallel
NUM_READERS = 2
ALIGNMENT = 4096


def memory_of(num_bytes):
    """Return page-aligned memory of *num_bytes*, rounded up to whole pages, filled with random bytes."""
    memory = mmap.mmap(-1, -(-num_bytes // ALIGNMENT) * ALIGNMENT)
    block = os.urandom(min(PIECE_BYTES, len(memory)))
    for start in range(0, len(memory), len(block)):
        memory[start : start + len(block)] = block[: len(memory) - start]
    return memoryview(memory)


def raw_write(path, memory):
    """Write *memory* to the new file *path* past the page cache. Raise :exc:`OSError` if the file system refuses."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    try:
        os.posix_fallocate(fd, 0, len(memory))
        for start in range(0, len(memory), PIECE_BYTES):
            piece = memory[start : start + PIECE_BYTES]
            assert os.pwrite(fd, piece, start) == len(piece)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def raw_read(path, memory, *, direct=False):
    """Read the file *path* into *memory*, on two threads."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))

    def read(start):
        piece = memory[start : start + PIECE_BYTES]
        assert os.preadv(fd, [piece], start) == len(piece)

    try:
        with ThreadPoolExecutor(NUM_READERS) as pool:
            list(pool.map(read, range(0, len(memory), PIECE_BYTES)))
    finally:
        os.close(fd)


def drop_caches():
    """Empty the page cache of this machine. Return False if that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


class Obstore:
    """Bare obstore, with eight requests in parallel."""

    name = "bare obstore"

    def __init__(self, bucket, options):
        from obstore.store import S3Store

        self._store = S3Store(
            bucket,
            endpoint=options["endpoint_url"],
            access_key_id=options["key"],
            secret_access_key=options["secret"],
            region="us-east-1",
            unsigned_payload=True,
            client_options={"allow_http": True},
        )

    def put(self, prefix, memory):
        import obstore

        def put(start):
            piece = memory[start : start + OBJECT_BYTES]
            obstore.put(self._store, f"{prefix}/{start}", piece, use_multipart=False)

        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            list(pool.map(put, range(0, len(memory), OBJECT_BYTES)))

    def get(self, prefix, memory):
        import obstore

        def get(start):
            end = min(start + RANGE_BYTES, len(memory))
            first = start // OBJECT_BYTES * OBJECT_BYTES
            key = f"{prefix}/{first}"
            memory[start:end] = memoryview(
                obstore.get_range(self._store, key, start=start - first, end=end - first)
            ).cast("B")

        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            list(pool.map(get, range(0, len(memory), RANGE_BYTES)))


class S3fs:
    """Bare s3fs with its defaults, which requests all objects at once."""

    name = "bare s3fs"

    def __init__(self, bucket, options):
        import s3fs

        self._bucket = bucket
        self._fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)

    def put(self, prefix, memory):
        keys = self._keys(prefix, memory)
        self._fs.pipe({key: bytes(memory[start : start + OBJECT_BYTES]) for start, key in keys.items()})

    def get(self, prefix, memory):
        found = self._fs.cat(list(self._keys(prefix, memory).values()))
        for start, key in self._keys(prefix, memory).items():
            memory[start : start + OBJECT_BYTES] = found[key]

    def _keys(self, prefix, memory):
        return {start: f"{self._bucket}/{prefix}/{start}" for start in range(0, len(memory), OBJECT_BYTES)}


def clients():
    """Return the classes of the clients that are installed."""
    return [Obstore, S3fs] if importlib.util.find_spec("obstore") else [S3fs]
