"""
Value of spot machines: goodput, found by a replay of leases with one or another way to save.

No training runs this code. It runs on the thread of its caller, such as a test or a benchmark. It must never
import torch or another package of ours, and never ask for the time, so that the same run and the same leases always
give the same outcome. Begin with :func:`.goodput.replay`.
"""

from __future__ import annotations

from .goodput import Lease, Outcome, Remaining, TrainingRun, replay

__all__ = ["Lease", "Outcome", "Remaining", "TrainingRun", "replay"]
