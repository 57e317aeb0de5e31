"""
Fingerprints of optimizer steps: short hashes of everything that a step was made of.

Lives here: the fingerprint of a step, its file on the local disk, its way into a checkpoint, and comparisons.
Runs in: the training thread of every rank, a few microseconds after each step.
Must never break: a record waits for no device and ends no training. It is equal if a step is trained again.
Begin with: :mod:`.recorder`.
"""

from __future__ import annotations

from .record import KINDS, StepRecord
from .recorder import Recorder, recorder_of
from .ring import RingId
from .runs import PART, Difference, Recorded, compare_runs, read

__all__ = [
    "KINDS",
    "PART",
    "Difference",
    "Recorded",
    "Recorder",
    "RingId",
    "StepRecord",
    "compare_runs",
    "read",
    "recorder_of",
]
