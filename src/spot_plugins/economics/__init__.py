"""
The value of spot machines: a replay of leases that tells which goodput a way of saving reaches.

Nothing of it runs during a training. It imports no torch and no other package of ours.
"""

from __future__ import annotations

from .goodput import Lease, Outcome, Remaining, TrainingRun, replay

__all__ = ["Lease", "Outcome", "Remaining", "TrainingRun", "replay"]
