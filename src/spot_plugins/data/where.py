"""The pass over a loader that a position belongs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A pass over a loader. A combination of loaders may go through a short one several times in an epoch."""

    epoch: int

    number: int
    """Passes that ended earlier in this epoch."""

    world_size: int
    """Ranks that trained."""

    epoch_done: bool
    """True if no batch of the pass was left."""
