"""Device memory to host memory: who stores which slice, where it lies, and the copy itself."""

from __future__ import annotations

from .buffer import SharedBuffer
from .check import find_nonsense
from .copier import Copier, TornError
from .frozen import FrozenWatch
from .plan import Changes, Layout, Source, plan_layout, signature
from .stage import Snapshot

__all__ = [
    "Changes",
    "Copier",
    "FrozenWatch",
    "Layout",
    "SharedBuffer",
    "Snapshot",
    "Source",
    "TornError",
    "find_nonsense",
    "plan_layout",
    "signature",
]
