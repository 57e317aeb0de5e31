"""Writes past the page cache: the same bytes, whatever the memory, the length and the file system."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import subprocess
import sys

import pytest

from spot_plugins.store import LocalStore, direct_io
from spot_plugins.store.direct_io import write_whole

MIB = 1024**2
SIZES = [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, MIB + 4096, 9 * MIB + 5000]


@pytest.fixture(scope="module")
def memory():
    """Memory as a shared buffer has it: writable, and beginning at a page."""
    memory = mmap.mmap(-1, 10 * MIB)
    memory[:] = random.Random(0).randbytes(10 * MIB)
    return memory


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request, tmp_path):
    if request.param == "disk":
        yield tmp_path
        return
    path = f"/dev/shm/spot-test-{os.getpid()}"
    os.mkdir(path)
    yield path
    for name in os.listdir(path):
        os.unlink(os.path.join(path, name))
    os.rmdir(path)


@pytest.mark.parametrize("first", [0, 4096, 17], ids=lambda first: f"from {first}")
@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_are_those_of_the_memory(size, first, folder, memory):
    """
    Nothing is added, lost or moved at the borders of blocks and chunks, nor where a file system has no such writes.
    """
    path = os.path.join(folder, "file")
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    data = memoryview(memory)[first : first + size]
    write_whole(file, data)
    os.close(file)
    with open(path, "rb") as written:
        assert written.read() == data


def is_cached(path):
    """Return True if the first page of a file is in the page cache. Nothing is read, which could bring it there."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * 1)()
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(first), ctypes.c_size_t(mmap.PAGESIZE), found)
        del first
        assert not failed, os.strerror(ctypes.get_errno())
    return bool(found[0] & 1)


def test_blobs_go_past_the_page_cache(tmp_path, memory):
    """
    What lies as it does in a shared buffer takes no page of the cache; what does not, does, and is the same.
    """
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("no O_DIRECT on this file system")
    store = LocalStore(str(tmp_path))
    store.put("aligned", memoryview(memory)[: 2 * MIB])
    store.put("unaligned", memoryview(memory)[1 : 2 * MIB])
    assert not is_cached(tmp_path / "aligned")
    assert is_cached(tmp_path / "unaligned")
    assert store.get("aligned") == memory[: 2 * MIB]


class LibcWithout:
    """The C library of a system whose file systems reserve nothing."""

    def fallocate(self, *args):
        return -1


@pytest.mark.parametrize("reserves", [True, False])
def test_the_whole_is_reserved_where_that_can_be_had(tmp_path, memory, monkeypatch, reserves):
    """
    Before the first write, and without a write: else glibc would write a byte into each block. Where a file system
    cannot, as NFS or ext2, blobs go past the page cache all the same.
    """
    if not reserves:
        monkeypatch.setattr(direct_io, "_libc", LibcWithout())
    seen, write = [], os.write

    def recording(file, data):
        is_direct = bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)
        seen.append((os.fstat(file).st_size, len(data), is_direct))
        return write(file, data)

    monkeypatch.setattr(os, "write", recording)
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    write_whole(file, memoryview(memory)[: 10 * MIB])
    os.close(file)
    if not any(is_direct for _, _, is_direct in seen):
        pytest.skip("no O_DIRECT on this file system")

    assert [(length, is_direct) for _, length, is_direct in seen] == [(8 * MIB, True), (2 * MIB, True)]
    assert [size for size, _, _ in seen] == ([10 * MIB] * 2 if reserves else [0, 8 * MIB])


LIMITED = """
import mmap, resource, sys
from spot_plugins.errors import StoreError
from spot_plugins.store import LocalStore, direct_io
resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024**2, 20 * 1024**2))
store = LocalStore(sys.argv[1])
store.put("small", memoryview(mmap.mmap(-1, 20 * 1024**2)))
try:
    store.put("large", memoryview(mmap.mmap(-1, 20 * 1024**2 + 4096)))
except StoreError as error:
    print(error)
print(list(store.keys("")))
"""


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    """
    The system lets no file grow beyond 20 MiB: an error says so, and nothing of the larger object stays.
    """
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)

    assert "cannot put 'large': File too large" in done.stdout
    assert done.stdout.endswith("['small']\n")
    assert list((tmp_path / ".spot-tmp").iterdir()) == []
