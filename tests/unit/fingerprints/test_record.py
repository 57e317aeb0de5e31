"""The bytes of a record, and the digests over all steps."""

from __future__ import annotations

import itertools

import pytest

from spot_plugins.fingerprints.history import History
from spot_plugins.fingerprints.record import KINDS, NUM_BYTES, NUM_RECORDS, Digests, StepRecord, decode_all
from spot_plugins.fingerprints.stored import Stored

RECORD = StepRecord(2**40, b"8 bytes.", (0, 1, 2**32 - 1, 3, 4, 5, 6))


def test_a_record_comes_back():
    assert len(RECORD.encode()) == NUM_BYTES == 48
    assert StepRecord.decode(RECORD.encode()) == RECORD


@pytest.mark.parametrize("number", range(NUM_BYTES))
def test_a_changed_byte_makes_it_no_record(number):
    """A process may be killed in the middle of a write."""
    data = bytearray(RECORD.encode())
    data[number] ^= 1
    assert StepRecord.decode(bytes(data)) is None
    assert [*decode_all(RECORD.encode() + data + RECORD.encode()[:-1])] == [RECORD]


def test_what_was_not_looked_at_is_equal_to_anything():
    """One of two processes has no position, or no CUDA."""
    other = RECORD._replace(hashes=(9, 0, 2**32 - 1, 9, 9, 5, 6))
    assert RECORD.differs_from(other) == other.differs_from(RECORD) == ("torch", "python")


@pytest.mark.parametrize("num", [1, 2, 67, NUM_RECORDS])
def test_a_digest_does_not_depend_on_how_many_steps_are_taken_in_at_a_time(num):
    """It is value * factor + hash + 1 for each step, in 64 bits."""
    steps = [tuple((step * 2654435761 * (number + 3)) % 2**32 for number in range(len(KINDS))) for step in range(200)]
    expected = [0] * len(KINDS)
    for hashes in steps:
        pairs = zip(expected, hashes, strict=True)
        expected = [(value * 0x9E3779B97F4A7C15 + each + 1) % 2**64 for value, each in pairs]

    digests = Digests()
    for start in range(0, len(steps), num):
        digests = Digests(digests.values)
        digests.add(steps[start : start + num])

    assert digests.values == tuple(expected)


@pytest.mark.parametrize("saved_after", [set(), {1, 127, 128, 129, 300}])
def test_a_history_is_the_same_whenever_it_is_saved(saved_after):
    """Also if it is loaded again, and has more steps than it keeps records of."""
    history, control = History(2), Digests()
    for step in range(1, 401):
        hashes = (step, 2, 3, 4, 5, 6, 7)
        data = history.add(step, hashes)
        control.add([hashes])
        assert StepRecord.decode(data) == history.last
        if step in saved_after:
            stored, history = Stored.decode(history.stored().encode()), History(2)
            history.load(stored)
    stored = history.stored()

    assert stored.digests == control.values
    assert (stored.first_step, stored.step, stored.world_size) == (1, 400, 2)
    assert [record.step for record in stored.records] == [*range(400 - NUM_RECORDS + 1, 401)]
    assert all(one.digest == other.before for one, other in itertools.pairwise(stored.records))


def test_the_history_of_another_number_of_ranks_is_not_continued():
    other = History(3)
    other.add(1, RECORD.hashes)
    history = History(2)
    history.load(other.stored())
    assert history.last is None


def test_the_digest_of_a_step_depends_on_all_steps_before():
    assert RECORD.digest != RECORD._replace(before=bytes(8)).digest
