"""The fingerprints in a checkpoint: running digests over all steps, and the records of the newest ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .record import KINDS, NUM_RECORDS, StepRecord, decode_all

_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The fingerprints that a checkpoint holds of one rank."""

    step: int
    """The last step that is part of the digests."""
    first_step: int
    """The first step that is part of the digests. Above 1 if the number of ranks has changed before it."""
    world_size: int
    """Number of ranks that trained these steps."""
    digests: tuple[int, ...]
    """A digest for each of :data:`~.record.KINDS`."""
    records: tuple[StepRecord, ...]
    """The records of the newest steps, in their order."""

    def encode(self) -> dict[str, Any]:
        """Return the state of the part."""
        return {
            "digests": {kind: f"{digest:016x}" for kind, digest in zip(KINDS, self.digests, strict=True)},
            "first_step": self.first_step,
            "format": _FORMAT,
            "records": b"".join(record.encode() for record in self.records),
            "step": self.step,
            "world_size": self.world_size,
        }

    @classmethod
    def decode(cls, state: Any) -> Stored | None:
        """Return what :meth:`encode` wrote, or None if *state*, which is not trusted, is anything else."""
        try:
            if not isinstance(state, Mapping) or state["format"] != _FORMAT:
                return None
            numbers = {name: state[name] for name in ("step", "first_step", "world_size")}
            if not all(type(number) is int and 0 <= number < 2**63 for number in numbers.values()):
                return None
            digests = tuple(int(state["digests"][kind], 16) for kind in KINDS)
            if not all(0 <= digest < 2**64 for digest in digests) or not isinstance(state["records"], bytes):
                return None
        except (KeyError, TypeError, ValueError):
            return None
        return cls(digests=digests, records=_newest(decode_all(state["records"])), **numbers)


def _newest(records: Iterable[StepRecord]) -> tuple[StepRecord, ...]:
    return tuple(deque(records, NUM_RECORDS))
