"""The file of records: it is small, private, and believed only where it is intact."""

from __future__ import annotations

import os
import stat

import pytest
from shared_files import write_out

from spot_plugins.fingerprints import ring
from spot_plugins.fingerprints.earlier import earlier_steps, remove_all
from spot_plugins.fingerprints.record import KINDS, NUM_BYTES, StepRecord
from spot_plugins.fingerprints.ring import MOST_FILES, NUM_SLOTS, Ring, RingId

ID = RingId(3, 1, 2)
HEADER = len(ID.header)


def record_of(step, before=bytes(8)):
    return StepRecord(step, before, (step + 1,) * len(KINDS))


def write(folder, steps, ring_id=ID, before=bytes(8)):
    file = Ring(str(folder), ring_id)
    for step in steps:
        file.write(step, record_of(step, before).encode())
    write_out(file)
    return folder / ring_id.name


def test_it_has_the_newest_steps_and_no_more_bytes(tmp_path):
    """Nobody else may read or write it."""
    path = write(tmp_path / "new", range(1, NUM_SLOTS + 101))

    assert sorted(ring.read(str(path.parent), ID)) == [*range(101, NUM_SLOTS + 101)]
    assert path.stat().st_size == HEADER + NUM_SLOTS * NUM_BYTES < 200_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def cut(path):
    os.truncate(path, HEADER + 2 * NUM_BYTES + 10)
    return [1]  # the slot of step 0 is empty


def flip(path):
    data = bytearray(path.read_bytes())
    data[HEADER + NUM_BYTES + 20] ^= 1
    path.write_bytes(data)
    return [2, 3]


def of_another_rank(path):
    path.write_bytes(RingId(3, 0, 2).header + path.read_bytes()[HEADER:])
    return []


def noise(path):
    path.write_bytes(os.urandom(5000))
    return []


def empty(path):
    path.write_bytes(b"")
    return []


def too_long(path):
    os.truncate(path, 10**12)
    return []


def link(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")
    return []


def folder(path):
    path.unlink()
    path.mkdir()
    return []


def pipe(path):
    path.unlink()
    os.mkfifo(path)
    return []


def gone(path):
    path.unlink()
    return []


@pytest.mark.parametrize("damage", [cut, flip, of_another_rank, noise, empty, too_long, link, folder, pipe, gone])
def test_what_is_not_intact_is_left_out(damage, tmp_path):
    """No error, no wait, and nothing that a record does not prove."""
    expected = damage(write(tmp_path, [1, 2, 3]))

    assert sorted(ring.read(str(tmp_path), ID)) == expected


@pytest.mark.parametrize(
    "name", ["a.steps", "000001-r00000.steps", "1-r0-of-1.steps", f"{'9' * 99}-r00000-of-00001.steps"]
)
def test_other_files_are_nobodys_business(name, tmp_path):
    (tmp_path / name).touch()
    assert ring.find(str(tmp_path), RingId(1, 0, 1)) == []
    assert ring.find(str(tmp_path / "nowhere"), RingId(1, 0, 1)) == []


def test_a_name_comes_back():
    assert RingId.parse(ID.name) == ID


def test_files_that_no_resume_needs_are_removed(tmp_path):
    """A file of this attempt's number or a later one is of another run. Others are kept if they have later steps."""
    for attempt in range(1, 10):
        write(tmp_path, [5, 6] if attempt != 6 else [4, 5], RingId(attempt, 1, 2))
    write(tmp_path, [5, 6], RingId(1, 0, 2))

    found = earlier_steps(str(tmp_path), RingId(8, 1, 2), 5, record_of(5))

    assert {step: earlier.attempt for step, earlier in found.items()} == {6: 7}
    assert [each.attempt for each in ring.find(str(tmp_path), ID)] == [7, 5, 4, 3]
    assert MOST_FILES == 4
    assert [each.attempt for each in ring.find(str(tmp_path), RingId(3, 0, 2))] == [1]


@pytest.mark.parametrize("last", [None, record_of(5)])
def test_files_of_ranks_that_the_job_no_longer_has_are_removed_like_its_own(last, tmp_path):
    """Each remaining rank removes them, also if it is new itself. The files of remaining ranks are their own matter."""
    for rank in range(4):
        for attempt in range(1, 8):
            write(tmp_path, [5, 6] if attempt != 3 else [4, 5], RingId(attempt, rank, 4))

    earlier_steps(str(tmp_path), RingId(7, 1, 2), 5, last)

    kept = {rank: [] for rank in range(4)}
    for name in sorted(os.listdir(tmp_path)):
        kept[RingId.parse(name).rank].append(RingId.parse(name).attempt)
    assert kept == {0: [*range(1, 8)], 1: [2, 4, 5, 6], 2: [2, 4, 5, 6], 3: [2, 4, 5, 6]}


def test_a_run_that_begins_anew_removes_those_of_ranks_that_it_does_not_have(tmp_path):
    for rank in range(4):
        write(tmp_path, [5], RingId(1, rank, 4))

    remove_all(str(tmp_path), RingId(2, 1, 2))

    assert os.listdir(tmp_path) == [RingId(1, 0, 4).name]


@pytest.mark.parametrize(
    ("ring_id", "steps", "before"),
    [
        (RingId(1, 1, 3), [5, 6], bytes(8)),  # another number of ranks
        (RingId(1, 1, 2), [5, 6], b"another."),  # other steps before
        (RingId(1, 1, 2), [6, 7], bytes(8)),  # it never was at step 5, as far as one can see
    ],
)
def test_only_an_attempt_that_came_the_same_way_counts(ring_id, steps, before, tmp_path):
    write(tmp_path, steps, ring_id, before)
    assert earlier_steps(str(tmp_path), RingId(2, 1, 2), 5, record_of(5)) == {}


def test_a_reader_follows_the_writer(tmp_path):
    """Another process reads every intact record while the file grows, goes around, and overtakes it."""
    file, reader = Ring(str(tmp_path), ID), ring.RingReader(str(tmp_path), ID)
    reader.poll()
    assert reader.records == {}

    written = 0
    for more in (1, 1, 5, NUM_SLOTS, 3, 2 * NUM_SLOTS + 10, 2):
        for step in range(written + 1, written + more + 1):
            file.write(step, record_of(step).encode())
        written += more
        write_out(file)
        reader.poll()
        newest = range(written - min(more, NUM_SLOTS) + 1, written + 1)
        assert {step: reader.records[step] for step in newest} == {step: record_of(step) for step in newest}
        assert max(reader.records) == written


def test_a_reader_of_a_file_that_is_gone_keeps_what_it_has(tmp_path):
    """The disk of a machine that vanished."""
    path = write(tmp_path, [1])
    reader = ring.RingReader(str(tmp_path), ID)
    reader.poll()
    path.unlink()
    reader.poll()
    assert list(reader.records) == [1]
