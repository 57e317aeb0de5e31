"""The fingerprint of one step as 48 bytes, and the running digests over all steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

import numpy as np
from xxhash import xxh3_64_digest, xxh32_intdigest

KINDS: Final = ("data", "rates", "accumulation", "torch", "python", "numpy", "cuda")
"""
Kinds of things that decide a step, in the order of their hashes.

``data`` is the position in the training data. ``rates`` are the learning rates, momentums and weight decays of all
parameter groups. ``accumulation`` is the number of batches in the step. The others are random streams.
"""

NUM_RECORDS: Final = 128
"""Newest records that are kept in memory and in a checkpoint, 6 KB of them."""

hash_32: Final = xxh32_intdigest
"""Hashes anything that has a buffer, in 32 bits. Called without a wrapper, which would double the time."""

pack: Final = Struct(f"<Q8s{len(KINDS)}I").pack
"""Packs step, digest of the step before, and hashes into the body of a record."""

NUM_BYTES: Final = 48
"""Size of a record: its body, and the first four bytes of its digest as a check."""

NO_DIGEST: Final = bytes(8)
"""The digest before the first step."""

_BODY: Final = Struct(f"<Q8s{len(KINDS)}I")
_FACTOR: Final = 0x9E3779B97F4A7C15  # odd, so that the product with it loses no bit
_POWERS: Final = np.array([pow(_FACTOR, exponent, 2**64) for exponent in range(NUM_RECORDS + 1)], dtype=np.uint64)


class StepRecord(NamedTuple):
    """The fingerprint of one optimizer step."""

    step: int
    before: bytes
    """Digest of the record of the step before, in 8 bytes."""
    hashes: tuple[int, ...]
    """A hash for each of :data:`KINDS`, in 32 bits. 0 if nothing was looked at, which is equal to anything."""

    @property
    def body(self) -> bytes:
        """All that the record says, in 44 bytes."""
        return pack(self.step, self.before, *self.hashes)

    @property
    def digest(self) -> bytes:
        """Digest of all steps up to this one. Equal digests mean that the same steps led here."""
        return xxh3_64_digest(self.body)

    @classmethod
    def of_body(cls, body: bytes) -> StepRecord:
        """Return the record with this :attr:`body`."""
        step, before, *hashes = _BODY.unpack(body)
        return cls(step, before, tuple(hashes))

    def encode(self) -> bytes:
        """Return the record as :data:`NUM_BYTES` bytes."""
        return self.body + self.digest[:4]

    @classmethod
    def decode(cls, data: bytes) -> StepRecord | None:
        """Return the record that :meth:`encode` wrote, or None if *data* is anything else."""
        body, check = data[: _BODY.size], data[_BODY.size :]
        if len(data) != NUM_BYTES or xxh3_64_digest(body)[:4] != check:
            return None
        return cls.of_body(body)

    def differs_from(self, other: StepRecord) -> tuple[str, ...]:
        """Return the kinds in which both records have a hash, and not the same one."""
        pairs = zip(KINDS, self.hashes, other.hashes, strict=True)
        return tuple(kind for kind, mine, others in pairs if mine != others and mine and others)


def decode_all(data: bytes) -> Iterator[StepRecord]:
    """Yield the intact records in *data*, which is not trusted."""
    for start in range(0, len(data) - NUM_BYTES + 1, NUM_BYTES):
        if (record := StepRecord.decode(data[start : start + NUM_BYTES])) is not None:
            yield record


class Digests:
    """
    A running digest of each kind, over all steps since a first one.

    Two trainings with equal digests have had equal hashes in every step, up to chance.
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._values = np.array(list(values) or [0] * len(KINDS), dtype=np.uint64)

    @property
    def values(self) -> tuple[int, ...]:
        """One number of 64 bits for each of :data:`KINDS`."""
        return tuple(self._values.tolist())

    def add(self, hashes: Sequence[tuple[int, ...]]) -> None:
        """
        Take in the hashes of the next steps, at most 128 of them.

        Each step replaces every value by ``value * _FACTOR + hash + 1``, modulo 2**64.
        """
        if num := len(hashes):
            added = (np.array(hashes, dtype=np.uint64) + np.uint64(1)) * _POWERS[:num][::-1, None]
            self._values = self._values * _POWERS[num] + added.sum(axis=0, dtype=np.uint64)
