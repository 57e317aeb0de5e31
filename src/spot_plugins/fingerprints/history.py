"""The steps of one rank so far: the newest ones as records, and a digest over all of them."""

from __future__ import annotations

from collections import deque

from xxhash import xxh3_64_digest

from .record import NO_DIGEST, NUM_RECORDS, Digests, StepRecord, pack
from .stored import Stored


class History:
    """
    The steps of one rank, over all attempts on the same number of ranks.

    Adding a step is cheap. Digests per kind are computed from many steps at once, which is ten times faster per step.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._first_step = 1
        self._newest: deque[bytes] = deque(maxlen=NUM_RECORDS)  # bodies of records
        self._before = NO_DIGEST  # the digest of the last of them
        self._digests = Digests()
        self._num_waiting = 0  # newest steps that the digests do not have yet

    def add(self, step: int, hashes: tuple[int, ...]) -> bytes:
        """Add *step*. Return its record, encoded."""
        body = pack(step, self._before, *hashes)
        self._before = digest = xxh3_64_digest(body)
        self._newest.append(body)
        self._num_waiting += 1
        if self._num_waiting == NUM_RECORDS:
            self._take_in()
        return body + digest[:4]

    @property
    def last(self) -> StepRecord | None:
        """The newest step, or None if there is none."""
        return StepRecord.of_body(self._newest[-1]) if self._newest else None

    def begin_anew(self, first_step: int) -> None:
        """Forget all steps. The next one is *first_step*."""
        self._first_step = first_step
        self._newest.clear()
        self._before = NO_DIGEST
        self._digests = Digests()
        self._num_waiting = 0

    def load(self, stored: Stored) -> None:
        """Continue what a checkpoint holds, if it was saved on the same number of ranks."""
        if stored.world_size != self._world_size or not stored.records:
            return
        self.begin_anew(stored.first_step)
        self._digests = Digests(stored.digests)
        self._newest.extend(record.body for record in stored.records)
        self._before = stored.records[-1].digest

    def stored(self) -> Stored:
        """Return what goes into a checkpoint."""
        self._take_in()
        records = tuple(map(StepRecord.of_body, self._newest))
        return Stored(
            step=records[-1].step if records else 0,
            first_step=self._first_step,
            world_size=self._world_size,
            digests=self._digests.values,
            records=records,
        )

    def _take_in(self) -> None:
        if self._num_waiting:
            new = list(self._newest)[-self._num_waiting :]
            self._digests.add([StepRecord.of_body(body).hashes for body in new])
            self._num_waiting = 0
