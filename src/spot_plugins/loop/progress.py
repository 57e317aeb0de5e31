"""The progress of a training loop, as the program sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Steps, epochs and batches that the training has done."""

    step: int
    """Optimizer steps done, over all processes of the run."""

    epoch: int
    """The epoch that is trained now, or comes next. Counted from 0."""

    batches: int
    """Batches of this epoch that this rank has trained on."""

    resumed: bool
    """True if this process continued from a checkpoint."""
