"""The steps that earlier attempts of this run trained after the step from which this attempt continues."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final, NamedTuple

from ..events import EventBus, StepDiffers
from . import ring
from .record import StepRecord
from .ring import MOST_FILES, RingId

logger = logging.getLogger(__name__)

ADVICE: Final = {
    "data": "The position in the training data differs. Look at loaders whose position is not saved, at changed data "
    "or batch sizes, and at loops that leave batches out.",
    "rates": "The learning rates, momentums or weight decays differ. Look at changed settings, and at schedulers that "
    "are not saved.",
    "accumulation": "The step is made of another number of batches. Look at gradient accumulation.",
    "torch": "The random stream of torch on the CPU differs. Look for numbers that one start of the program draws and "
    "the other does not, and for seeds that are set after the resume.",
    "python": "The random stream of Python differs, which matters if training draws from it. Look for numbers that one "
    "start of the program draws and the other does not, in libraries and threads as well.",
    "numpy": "The random stream of numpy differs, which matters if training draws from it. Look for numbers that one "
    "start of the program draws and the other does not, in libraries and threads as well.",
    "cuda": "The random stream of a CUDA device differs. Look for numbers that one start of the program draws and the "
    "other does not.",
}
"""The meaning of a difference in each kind, and the places to look at."""


class EarlierStep(NamedTuple):
    """A step that an earlier attempt has trained."""

    attempt: int
    record: StepRecord


class Comparison:
    """
    Compares steps that are trained again with those of :func:`earlier_steps`.

    Each kind of difference is told once, by an event and a warning, because most differences stay.
    """

    def __init__(self, steps: dict[int, EarlierStep], own: RingId, bus: EventBus) -> None:
        self._steps = steps
        self._on_rank = f" on rank {own.rank}" if own.world_size > 1 else ""
        self._bus = bus
        self._told: set[str] = set()

    @property
    def is_over(self) -> bool:
        """True if no step is left to compare."""
        return not self._steps

    def compare(self, record: StepRecord) -> None:
        """Compare *record*, if an earlier attempt has trained its step, and tell what differs."""
        earlier = self._steps.pop(record.step, None)
        if earlier is None:
            return
        new = tuple(kind for kind in record.differs_from(earlier.record) if kind not in self._told)
        if not new:
            return
        self._told.update(new)
        logger.warning(
            "step %s%s is not the step %s that attempt %s trained before it ended. %s If you have changed the program "
            "on purpose, this is no error. Otherwise the training is not the one that was interrupted",
            record.step,
            self._on_rank,
            record.step,
            earlier.attempt,
            " ".join(ADVICE[kind] for kind in new),
        )
        self._bus.emit(StepDiffers(step=record.step, attempt=earlier.attempt, what=new))


def earlier_steps(folder: str, own: RingId, step: int, last: StepRecord | None) -> dict[int, EarlierStep]:
    """
    Return the steps after *step* that earlier attempts have trained, as far as their files are on this disk.

    A file counts only if it has *last*, the newest step of the checkpoint, with the same digest. Then its attempt had
    come there by the same steps. So files of another run at the same URL do not count. Of two attempts that trained one
    step, the later one counts.

    Only files of the same number of ranks count, because other ranks get other data. Files that no resume will need
    any more are removed, also those of ranks that the job no longer has.

    Args:
        folder: Directory of the files.
        own: This attempt and rank.
        step: The step from which training continues.
        last: Its record in the checkpoint. None if it has none of this rank, so that nothing is compared.
    """
    found: dict[int, EarlierStep] = {}
    num_kept: Counter[int] = Counter()  # by rank
    for ring_id in ring.find(folder, own):
        is_old = ring_id.attempt < own.attempt and num_kept[ring_id.rank] < MOST_FILES
        records = ring.read(folder, ring_id) if is_old else {}
        if max(records, default=0) <= step:
            ring.remove(folder, ring_id)
            continue
        num_kept[ring_id.rank] += 1
        known = records.get(step)
        is_same_rank = (ring_id.rank, ring_id.world_size) == (own.rank, own.world_size)
        if is_same_rank and known is not None and last is not None and known.digest == last.digest:
            for number, record in records.items():
                if number > step:
                    found.setdefault(number, EarlierStep(ring_id.attempt, record))
    return found


def remove_all(folder: str, own: RingId) -> None:
    """
    Remove all files of this rank, because a run that begins at its first step continues none of them.

    Those of ranks that the job does not have are removed too.
    """
    for ring_id in ring.find(folder, own):
        ring.remove(folder, ring_id)
