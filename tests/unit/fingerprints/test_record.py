"""The bytes of a record, and the digests over all steps."""

from __future__ import annotations

import pytest

from spot_plugins.fingerprints.record import KINDS, NUM_BYTES, Digests, StepRecord, decode_all, hash_32

RECORD = StepRecord(2**40, 2**64 - 1, (0, 1, 2**32 - 1, 3, 4, 5, 6))


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


def test_no_hash_is_nothing():
    assert all(0 < hash_32(b"%d" % number) < 2**32 for number in range(100))


@pytest.mark.parametrize("asked_after", [{200}, {1, 2, 64, 65, 130, 200}, set(range(201))])
def test_a_digest_does_not_depend_on_when_it_is_asked_for(asked_after):
    """It is value * factor + hash + 1 for each step, in 64 bits, however many steps are taken in at a time."""
    digests, expected = Digests(), [0] * len(KINDS)
    for step in range(1, 201):
        hashes = tuple((step * 2654435761 * (number + 3)) % 2**32 for number in range(len(KINDS)))
        digests.add(hashes)
        expected = [
            (value * 0x9E3779B97F4A7C15 + each + 1) % 2**64 for value, each in zip(expected, hashes, strict=True)
        ]
        if step in asked_after:
            assert digests.values == tuple(expected)
            digests = Digests(digests.values)


def test_the_digest_of_a_step_depends_on_all_steps_before():
    one, other = StepRecord.after(0, 1, RECORD.hashes), StepRecord.after(1, 1, RECORD.hashes)
    assert one.digest != other.digest
    assert one.hashes == other.hashes
