"""
How all ranks choose the same step to save, without a collective and without a wait in a quiet step.

:class:`Solo` is the agreement of one rank with itself; :class:`Group` that of many.
"""

from __future__ import annotations

from .decision import Act, Agreement, Decision
from .group import Group
from .notice import Notice, notice_of
from .solo import Solo

__all__ = ["Act", "Agreement", "Decision", "Group", "Notice", "Solo", "notice_of"]
