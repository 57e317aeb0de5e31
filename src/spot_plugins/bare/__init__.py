"""
The host for loops in plain PyTorch: ``SpotLoop("s3://bucket/run-7", every_steps=100)``.

Needs torch alone, on one process or under torchrun.

Lives here: what the program has registered, and the number of batches per step. It decides nothing.
Runs in: the training thread of every rank.
Must never break: a resumed loop sees the batches that an uninterrupted loop would have seen.
Begin with: :mod:`.spot_loop`, then :mod:`spot_plugins.loop`. :mod:`.fabric` has what differs under Lightning Fabric.
"""

from __future__ import annotations

from ..loop import Progress
from .spot_loop import SpotLoop

__all__ = ["Progress", "SpotLoop"]
