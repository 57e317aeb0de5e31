"""
The program that trains, as its user knows it: the lines that it shows, and the facts that it is compared by.

Lives here: the visible lines, a description of optimizers, schedulers, loaders and settings, their comparison, and
the subscribers that a user passes.
Runs in: the training thread of every rank; the answer to a notice is a line from the thread of that notice.
Must never break: no line and no odd value ends a training, and a difference from the checkpoint is never kept silent.
Begin with: :mod:`.program`, then :mod:`.compare`.
"""

from __future__ import annotations

from .lines import Lines
from .program import Program
from .subscribers import subscribers_of

__all__ = ["Lines", "Program", "subscribers_of"]
