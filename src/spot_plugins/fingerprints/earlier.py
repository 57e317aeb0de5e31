"""The steps that earlier attempts of this run trained after the step from which this attempt continues."""

from __future__ import annotations

from typing import Final, NamedTuple

from . import ring
from .record import StepRecord
from .ring import MOST_FILES, RingId

ADVICE: Final = {
    "data": "The position in the training data differs. Look at loaders whose position is not saved, at changed data or "
    "batch sizes, and at loops that leave batches out.",
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


def earlier_steps(folder: str, own: RingId, step: int, digest: int) -> dict[int, EarlierStep]:
    """
    Return the steps after *step* that earlier attempts have trained, as far as their files are on this disk.

    A file counts only if its attempt had come to *step* by the same steps as the checkpoint, which *digest* shows. So
    files of another run at the same URL do not count. Of two attempts that trained one step, the later one counts.

    Only files of the same number of ranks count, because other ranks get other data. Files that no resume will need
    any more are removed.
    """
    found: dict[int, EarlierStep] = {}
    num_kept = 0
    for ring_id in ring.find(folder, own.rank):
        if ring_id.attempt >= own.attempt or num_kept == MOST_FILES:
            ring.remove(folder, ring_id)
            continue
        records = ring.read(folder, ring_id)
        if max(records, default=0) <= step:
            ring.remove(folder, ring_id)
            continue
        num_kept += 1
        known = records.get(step)
        if ring_id.world_size == own.world_size and known is not None and known.digest == digest:
            for number, record in records.items():
                if number > step:
                    found.setdefault(number, EarlierStep(ring_id.attempt, record))
    return found


def remove_all(folder: str, rank: int) -> None:
    """Remove all files of *rank*, because a run that begins at its first step continues none of them."""
    for ring_id in ring.find(folder, rank):
        ring.remove(folder, ring_id)
