"""Writes past the page cache: the same bytes, whatever the memory, the length and the file system."""

from __future__ import annotations

import errno
import mmap
import os
import random

import pytest

from spot_plugins.store import LocalStore
from spot_plugins.store.direct import write_whole

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
    """Whether the first page of a file is in the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise
    finally:
        os.close(file)
    return True


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
