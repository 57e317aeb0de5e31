"""
Comparisons of what a program trains with what is saved, while it trains.

Lives here: counts of what optimizers of the whole process do, and the search for objects that train but are not saved.
Runs in: the training thread of every rank.
Must never break: a training of which something is not saved is told so within its first steps.
Begin with: :mod:`.guard`.
"""

from __future__ import annotations

from .guard import Guard
from .host import Host, Kind
from .optimizer_steps import OptimizerSteps
from .places import name_of
from .warn import warn

__all__ = ["Guard", "Host", "Kind", "OptimizerSteps", "name_of", "warn"]
