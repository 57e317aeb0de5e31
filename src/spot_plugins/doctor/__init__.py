"""
Examination of a machine before a training: ``spot doctor``.

It finds what would make a preemption lose work here: a launcher that keeps a SIGTERM to itself, a store that refuses, a
checkpoint that does not fit into the grace period. Everything runs on the main thread of a process of its own, which
trains nothing, and no module imports torch. Each check is a function that yields findings and never raises because of
what it found. Begin with :mod:`.findings`, then read :mod:`.examination`.
"""

from __future__ import annotations

from .examination import Examined, examine
from .findings import Finding

__all__ = ["Examined", "Finding", "examine"]
