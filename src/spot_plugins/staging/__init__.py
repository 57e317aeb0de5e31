"""Device memory to host memory: who stores which slice, where it lies, and the copy itself."""

from __future__ import annotations

from .buffer import SharedBuffer
from .check import find_nonsense
from .plan import Layout, Source, plan_layout, signature
from .stage import copy_into

__all__ = ["Layout", "SharedBuffer", "Source", "copy_into", "find_nonsense", "plan_layout", "signature"]
