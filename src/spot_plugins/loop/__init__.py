"""
Training loops that the program writes itself: what the hosts for them have in common.

Lives here: epochs, batches, steps and pauses of a loop, and the warnings of a loop that a resume could not repeat.
Runs in: the training thread of every rank.
Must never break: a resumed loop sees the batches that an uninterrupted loop would have seen.
Begin with: :mod:`.loop`, then :mod:`.position`. :mod:`.framework` is all that a host has to say of its framework.
"""

from __future__ import annotations

from .framework import Framework, Words
from .loop import Loop
from .progress import Progress
from .saved import NamedPart, Saved

__all__ = ["Framework", "Loop", "NamedPart", "Progress", "Saved", "Words"]
