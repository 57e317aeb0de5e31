"""The agreement of one rank with itself."""

from __future__ import annotations

import threading
from dataclasses import replace

from ..ranks import RankLostError
from ..schedule import PeriodicTrigger
from .decision import Decision, Participant
from .notice import Notice, merge


class Solo:
    """
    The :class:`~.decision.Agreement` of a job of one process.

    Args:
        trigger: Says when a save is due.
        participant: The training of this process.
    """

    def __init__(self, trigger: PeriodicTrigger, participant: Participant) -> None:
        self._trigger = trigger
        self._participant = participant
        self._is_deferred = False  # the save that is due; of the training thread alone
        self._lock = threading.Lock()
        self._notice: Notice | None = None

    def open(self) -> None:
        """See :class:`~.decision.Agreement`."""

    @property
    def lost(self) -> RankLostError | None:
        """See :class:`~.decision.Agreement`."""
        return None

    @property
    def notice(self) -> Notice | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            return self._notice

    def notify(self, notice: Notice) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._notice = merge(self._notice, notice)

    def cut_short(self) -> bool:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            if self._notice is None or self._notice.at_once:
                return False
            self._notice = replace(self._notice, at_once=True)
            return True

    def save_soon(self) -> None:
        """See :class:`~.decision.Agreement`."""
        self._trigger.hasten()

    def at_boundary(self, step: int) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        if (notice := self.notice) is not None:
            return self._decide(step, notice)
        if (due := self._trigger.due(step)) is None:
            return None
        if self._participant.is_ready():
            return Decision(due)
        if not self._is_deferred:
            self._is_deferred = True
            self._participant.on_deferred(step)
        return None

    def _decide(self, step: int, notice: Notice) -> Decision | None:
        if notice.at_once or (act := self._participant.decide(step, notice, 0)) == "leave":
            return Decision("notice", leaves=True)
        return Decision("notice") if act == "save" and self._participant.is_ready() else None

    def enter_pause(self) -> None:
        """See :class:`~.decision.Agreement`."""

    def in_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        return None if self.notice is None else Decision("notice", leaves=True)

    exit_pause = in_pause

    def saved(self, step: int) -> None:
        """See :class:`~.decision.Agreement`."""
        self._is_deferred = False
        self._trigger.reset(step)

    def stay(self) -> bool:
        """See :class:`~.decision.Agreement`. The notice is about this process itself."""
        return False

    def close(self) -> None:
        """See :class:`~.decision.Agreement`."""
