"""The fingerprint of one step as 48 bytes, and the running digests over all steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

KINDS: Final = ("data", "rates", "accumulation", "torch", "python", "numpy", "cuda")
"""
Kinds of things that decide a step, in the order of their hashes.

``data`` is the position in the training data. ``rates`` are the learning rates, momentums and weight decays of all
parameter groups. ``accumulation`` is the number of batches in the step. The others are random streams.
"""

_BODY: Final = Struct(f"<QQ{len(KINDS)}I")
_CHECK: Final = Struct("<I")
_MASK_32: Final = 2**32 - 1
_FACTOR: Final = 0x9E3779B97F4A7C15  # odd, so that the product with it loses no bit
_POWERS: Final = np.array([pow(_FACTOR, exponent, 2**64) for exponent in range(65)], dtype=np.uint64)

NUM_BYTES: Final = _BODY.size + _CHECK.size
"""Size of an encoded record."""


class StepRecord(NamedTuple):
    """The fingerprint of one optimizer step."""

    step: int
    digest: int
    """Digest of all steps up to this one. Equal digests mean that the same steps led here."""
    hashes: tuple[int, ...]
    """A hash for each of :data:`KINDS`, in 32 bits. 0 if nothing was looked at, which is equal to anything."""

    def encode(self) -> bytes:
        """Return :data:`NUM_BYTES` bytes. The last four are a check of the others."""
        body = _BODY.pack(self.step, self.digest, *self.hashes)
        return body + _CHECK.pack(xxh3_64_intdigest(body) & _MASK_32)

    @classmethod
    def after(cls, before: int, step: int, hashes: tuple[int, ...]) -> StepRecord:
        """Return the record of *step*. *before* is the digest of all steps before it, 0 if it is the first."""
        return cls(step, xxh3_64_intdigest(_BODY.pack(step, before, *hashes)), hashes)

    @classmethod
    def decode(cls, data: bytes) -> StepRecord | None:
        """Return the record that :meth:`encode` wrote, or None if *data* is anything else."""
        if len(data) != NUM_BYTES:
            return None
        body, check = data[: _BODY.size], data[_BODY.size :]
        if _CHECK.unpack(check)[0] != xxh3_64_intdigest(body) & _MASK_32:
            return None
        step, digest, *hashes = _BODY.unpack(body)
        return cls(step, digest, tuple(hashes))

    def differs_from(self, other: StepRecord) -> tuple[str, ...]:
        """Return the kinds in which both records have a hash, and not the same one."""
        pairs = zip(KINDS, self.hashes, other.hashes, strict=True)
        return tuple(kind for kind, mine, others in pairs if mine != others and mine and others)


def hash_32(data: bytes | memoryview) -> int:
    """Return a hash of *data* in 1..2**32-1, because 0 stands for nothing."""
    return xxh3_64_intdigest(data) & _MASK_32 or 1


def decode_all(data: bytes) -> Iterator[StepRecord]:
    """Yield the intact records in *data*, which is not trusted."""
    for start in range(0, len(data) - NUM_BYTES + 1, NUM_BYTES):
        if (record := StepRecord.decode(data[start : start + NUM_BYTES])) is not None:
            yield record


class Digests:
    """
    A running digest of each kind, over all steps since a first one.

    Two trainings with equal digests have had equal hashes in every step, up to chance. Hashes are taken in many at a
    time, because that is ten times faster per step.
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._values = np.array(list(values) or [0] * len(KINDS), dtype=np.uint64)
        self._waiting: list[tuple[int, ...]] = []

    def add(self, hashes: tuple[int, ...]) -> None:
        """Take the hashes of the next step in."""
        self._waiting.append(hashes)
        if len(self._waiting) == len(_POWERS) - 1:
            self._take_in()

    @property
    def values(self) -> tuple[int, ...]:
        """One number of 64 bits for each of :data:`KINDS`."""
        self._take_in()
        return tuple(self._values.tolist())

    def _take_in(self) -> None:
        """For each step replace every value by ``value * _FACTOR + hash + 1``, modulo 2**64."""
        if num := len(self._waiting):
            hashes = np.array(self._waiting, dtype=np.uint64) + np.uint64(1)
            powers = _POWERS[num - 1 :: -1] if num > 1 else _POWERS[:1]
            self._values = self._values * _POWERS[num] + (hashes * powers[:, None]).sum(axis=0, dtype=np.uint64)
            self._waiting.clear()
