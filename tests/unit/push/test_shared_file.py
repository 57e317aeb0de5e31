"""A file that one process writes as memory and another one as a file, on disks that take it and on others."""

from __future__ import annotations

import os
import resource
import stat
import threading
from contextlib import suppress

import pytest
from hearing import DEADLINE_S, until
from shared_files import finish
from sick_disks import SickDisk

from spot_plugins.push import FileWriter, SharedFile
from spot_plugins.push.shared_memory import open_file, open_memory

NUM_BYTES = 10_000


@pytest.fixture
def kept(tmp_path):
    """Return a file that a writer keeps on the disk, the writer, and the list of what it has told."""
    file, told = SharedFile(str(tmp_path / "folder" / "file"), NUM_BYTES), []
    writer = FileWriter(told.append)

    def keep():
        writer.keep(file.path, os.dup(file.fd), NUM_BYTES)
        return file, writer, told

    yield keep
    finish(writer)


def read(file):
    with open(file.path, "rb") as each:
        return each.read()


def test_the_file_follows_the_memory(kept):
    """Also at the end, at once. It is as long as what is in it, and readable by its owner alone."""
    file, writer, told = kept()
    file.memory[:3] = b"one"
    until(lambda: os.path.exists(file.path) and read(file)[:3] == b"one", "it is written")
    assert len(read(file)) < NUM_BYTES
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    file.memory[-3:] = b"end"
    finish(writer)
    assert read(file) == bytes(file.memory)
    assert told == []


def test_a_page_that_has_not_changed_is_not_written_again(kept):
    """A mark that is put over it on the disk stays, while another page is written."""
    file, writer, _ = kept()
    file.memory[:3] = b"one"
    until(lambda: os.path.exists(file.path) and read(file)[:3] == b"one", "it is written")
    until(lambda: writer._written[:3] == b"one", "the writer knows")
    with open(file.path, "r+b") as each:
        each.write(b"mark")
    file.memory[-3:] = b"end"
    finish(writer)
    assert read(file)[:4] == b"mark"
    assert read(file)[-3:] == b"end"


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_is_there_is_replaced(is_link, kept, tmp_path):
    """Nothing of it is left, and a link leads nowhere."""
    (tmp_path / "folder").mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"another run")
    place = tmp_path / "folder" / "file"
    place.symlink_to(other) if is_link else place.write_bytes(bytes(20_000) + b"another run")

    file, writer, _ = kept()
    file.memory[:3] = b"one"
    finish(writer)

    assert read(file).rstrip(b"\0") == b"one"
    assert other.read_bytes() == b"another run"


def test_a_disk_that_is_full_is_told_once_and_tried_again(kept):
    """The limit of the size of files stands for it. The file is whole as soon as there is room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # the last page has some room, so no call fails
    try:
        file, writer, told = kept()
        file.memory[:] = b"x" * NUM_BYTES
        until(lambda: told, "it is told")
        first = os.stat(file.path).st_mtime_ns
        until(lambda: os.stat(file.path).st_mtime_ns > first, "it is tried again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finish(writer)

    assert read(file) == bytes(file.memory)
    [reason] = told
    assert "No space left on device" in reason


def test_a_directory_that_cannot_be_made_is_told(kept, tmp_path):
    (tmp_path / "folder").touch()
    file, _, told = kept()
    file.memory[:3] = b"one"
    until(lambda: told, "it is told")
    assert "File exists" in told[0]


def test_a_disk_that_hangs_holds_up_nobody(kept, tmp_path, monkeypatch):
    """It is told, and the memory can be written all the time."""
    monkeypatch.setattr("spot_plugins.push.shared_file.CLOSE_S", 0.05)
    with SickDisk(tmp_path / "folder") as sick:
        file, writer, told = kept()
        file.memory[:3] = b"one"
        assert sick.hangs.wait(DEADLINE_S)
        until(lambda: told, "it is told")
        file.memory[:3] = b"two"
        writer.end()
        writer.close()
    [reason] = told
    assert f"cannot use '{tmp_path / 'folder'}': the local disk does not answer" in reason
    until(lambda: "spot-file" not in {each.name for each in threading.enumerate()}, "its thread has ended")


def test_the_memory_outlives_the_one_who_made_it(tmp_path):
    """The descriptor that was sent is another one than that of the maker."""
    file = SharedFile(str(tmp_path / "file"), NUM_BYTES)
    file.memory[:3] = b"one"
    writer, descriptor = FileWriter(), os.dup(file.fd)
    path, own = file.path, file.fd
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(own)
    memory = os.fstat(descriptor)
    writer.keep(path, descriptor, NUM_BYTES)
    finish(writer)
    assert (tmp_path / "file").read_bytes()[:3] == b"one"
    with suppress(OSError):  # the number may be that of another file by now
        assert not os.path.samestat(os.fstat(descriptor), memory), "the writer closes it"


def test_memory_that_is_a_file_is_read_by_others_at_once(tmp_path):
    """Without a writer, and by its owner alone. A file that is there is not overwritten."""
    path = tmp_path / "live" / "file"
    file = SharedFile(str(tmp_path / "folder" / "file"), NUM_BYTES, str(path))
    file.memory[-3:] = b"end"
    assert path.read_bytes() == bytes(NUM_BYTES - 3) + b"end"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        SharedFile(file.path, NUM_BYTES, str(path))
    assert path.read_bytes().endswith(b"end")


def test_memory_of_a_size_that_the_system_refuses_is_closed(tmp_path):
    """Each save would leave a descriptor behind, until the process has none."""
    path = tmp_path / "live" / "file"
    for make in (lambda: open_memory("refused", -1), lambda: open_file(str(path), -1)):
        with pytest.raises(OSError, match="Invalid argument"):
            make()
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of another thread, which has closed it
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    assert not [name for name in opened if "refused" in name or str(path) in name]
