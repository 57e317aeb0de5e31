"""
All ranks choose the same step to save, without a collective and without a wait in a quiet step.

The training thread of each process calls in at every boundary. One background thread per process reads the board.
What must never break: all ranks save and leave after the same step, a notice is always obeyed, and no training thread
waits without a limit.
Begin with :mod:`.decision`, the protocols, then read :mod:`.ballot`, which has all the rules and is pure.
:class:`Solo` is the agreement of one rank with itself, and :class:`Group` the agreement of many.
"""

from __future__ import annotations

from .decision import Act, Agreement, Decision, Participant
from .group import Group
from .notice import Notice, notice_of
from .solo import Solo

__all__ = ["Act", "Agreement", "Decision", "Group", "Notice", "Participant", "Solo", "notice_of"]
