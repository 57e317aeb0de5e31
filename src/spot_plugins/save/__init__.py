"""
From live tensors to a staged step: the layout of blobs, shared buffers, and the copy while training continues.

:class:`.Saver` is called on the training thread; copies run on the thread of :mod:`.copier`. What must never break: a
staged step holds the values of exactly one step, although the next one may be computed meanwhile. Begin with
:mod:`.saver`, then read :mod:`.layout` and :mod:`.snapshot`.
"""

from __future__ import annotations

from .saved_steps import SavedSteps
from .saver import NO_MEMORY, Saver

__all__ = ["NO_MEMORY", "SavedSteps", "Saver"]
