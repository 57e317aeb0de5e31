"""One rank: the decision is its own."""

from __future__ import annotations

from ..schedule import PeriodicTrigger
from .decision import Decision
from .notice import Notice, merge


class Solo:
    """
    The :class:`~.decision.Agreement` of a job of one process.

    Args:
        trigger: Says when a save is due.
        ready: Whether an earlier save is done, so that another may begin.
        deferred: Called with a step that was due and is not saved.
        planner: Asked at each step once a notice leaves time.
    """

    def __init__(
        self,
        trigger: PeriodicTrigger,
        participant,
    ) -> None:
        self._trigger = trigger
        self._ready = participant.is_ready
        self._deferred = participant.on_deferred
        self._planner = participant
        self._told_deferred = False
        self._notice: Notice | None = None

    def open(self):
        pass

    @property
    def notice(self) -> Notice | None:
        """See :class:`~.decision.Agreement`."""
        return self._notice

    def notify(self, notice: Notice) -> None:
        """See :class:`~.decision.Agreement`."""
        self._notice = merge(self._notice, notice)

    def save_soon(self) -> None:
        """See :class:`~.decision.Agreement`."""
        self._trigger.hasten()

    def at_boundary(self, step: int) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        if (notice := self._notice) is not None:
            return self._heed(step, notice)
        if (due := self._trigger.due(step)) is None:
            return None
        if self._ready():
            return Decision(due)
        if not self._told_deferred:
            self._told_deferred = True
            self._deferred(step)
        return None

    def _heed(self, step: int, notice: Notice) -> Decision | None:
        if notice.at_once or (act := self._planner.decide(step, notice, 0)) == "leave":
            return Decision("notice", leaves=True)
        return Decision("notice") if act == "save" and self._ready() else None

    def enter_pause(self) -> None:
        """See :class:`~.decision.Agreement`."""

    def in_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        return None if self._notice is None else Decision("notice", leaves=True)

    exit_pause = in_pause

    def saved(self, step: int) -> None:
        """See :class:`~.decision.Agreement`."""
        self._told_deferred = False
        self._trigger.reset(step)

    def stay(self) -> bool:
        """See :class:`~.decision.Agreement`. The notice is its own."""
        return False

    def close(self) -> None:
        """See :class:`~.decision.Agreement`."""
