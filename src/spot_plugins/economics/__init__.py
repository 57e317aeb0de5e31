"""
Value of spot machines: formulas, simulations, and the plan of ``spot plan``.

Everything here runs on the thread of its caller, in the process of ``spot plan``, of a test or of a benchmark. Nothing
here imports torch. The formulas never ask for the time and never touch a store, so that the same numbers always give
the same answer. Begin with :mod:`.walltime`; :func:`.goodput.replay` compares reactions to notices, step by step.
"""

from __future__ import annotations

from .goodput import Lease, Outcome, Remaining, TrainingRun, replay

__all__ = ["Lease", "Outcome", "Remaining", "TrainingRun", "replay"]
