"""
The hook for training loops with Accelerate: ``SpotHook(accelerator, "s3://bucket/run-7", every_steps=100)``.

Needs ``pip install "spot_plugins[accelerate]"``.

Lives here: what Accelerate does itself in a training loop, and what it has prepared. It decides nothing.
Runs in: the training thread of every rank.
Must never break: a resumed loop sees the batches that an uninterrupted loop would have seen.
Begin with: :mod:`.hook`, then :mod:`spot_plugins.loop`. :mod:`.internals` has all private names of Accelerate.
"""

from __future__ import annotations

from ..loop import Progress
from .hook import SpotHook

__all__ = ["Progress", "SpotHook"]
