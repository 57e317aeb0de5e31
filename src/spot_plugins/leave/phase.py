"""The phases of a session: what is true in each, which follow, and which calls each allows."""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import Final


class Phase(Enum):
    """The progress of one attempt. Exactly one phase holds at a time."""

    NEW = "new"
    """Built. Nothing is opened yet."""
    JOINED = "joined"
    """The attempt is claimed, the pusher runs and notices arrive. No state is restored or saved yet."""
    TRAINING = "training"
    """Steps are trained and saved."""
    PAUSED = "paused"
    """Training stands still after a step, for example in validation. The state of that step is held or stored."""
    LEAVING = "leaving"
    """The training thread obeys a notice: it makes the last step durable, then raises ``Preempted``."""
    LEFT_BEHIND = "left behind"
    """The other ranks have left. This rank trains on, and saves nothing (``on_notice="continue"``)."""
    CLOSED = "closed"
    """Everything is given back. The pusher process may still push what was staged."""


MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.NEW: frozenset({Phase.JOINED, Phase.CLOSED}),
    Phase.JOINED: frozenset({Phase.TRAINING, Phase.CLOSED}),
    Phase.TRAINING: frozenset({Phase.PAUSED, Phase.LEAVING, Phase.CLOSED}),
    Phase.PAUSED: frozenset({Phase.TRAINING, Phase.LEAVING, Phase.LEFT_BEHIND, Phase.CLOSED}),
    Phase.LEAVING: frozenset({Phase.LEFT_BEHIND, Phase.CLOSED}),
    Phase.LEFT_BEHIND: frozenset({Phase.LEAVING, Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}
"""The phases that may follow each phase."""

_STEPPING: Final = frozenset({Phase.TRAINING, Phase.LEFT_BEHIND})

CALLS: Final[dict[str, frozenset[Phase]]] = {
    "open": frozenset({Phase.NEW}),
    "register": frozenset({Phase.NEW, Phase.JOINED}),
    "peek": frozenset({Phase.NEW, Phase.JOINED}),
    "resume": frozenset({Phase.NEW, Phase.JOINED}),
    "handle_signals": frozenset({Phase.NEW, Phase.JOINED, Phase.TRAINING, Phase.PAUSED, Phase.LEFT_BEHIND}),
    "after_step": _STEPPING,
    "save": _STEPPING,
    "keep": _STEPPING | {Phase.PAUSED},
    "pause": _STEPPING,
    "release": _STEPPING | {Phase.PAUSED},
    "finish": _STEPPING,
}
"""The phases in which each call of :class:`~spot_plugins.session.SpotSession` is allowed. All others always are."""

_REMEDIES: Final[dict[Phase, str]] = {
    Phase.NEW: "open the session first, with open() or a `with` block",
    Phase.JOINED: "call resume() first",
    Phase.TRAINING: "call it before resume()",
    Phase.PAUSED: "end the pause first",
    Phase.LEAVING: "let Preempted end the training",
    Phase.LEFT_BEHIND: "call it before resume()",
    Phase.CLOSED: "make a new session",
}


class PhaseTracker:
    """
    The phase of one session, and the way to wait for another.

    The training thread moves it. A thread of the agreement does so only from PAUSED to LEFT_BEHIND.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._now = Phase.NEW
        self._marked_at = time.monotonic()

    @property
    def now(self) -> Phase:
        """The phase that holds."""
        return self._now

    @property
    def still_s(self) -> float:
        """Seconds since the training thread has called the session."""
        return time.monotonic() - self._marked_at

    def mark(self) -> None:
        """Record that the training thread has called the session, so it is not stuck."""
        self._marked_at = time.monotonic()

    def move(self, new: Phase) -> None:
        """Enter *new*, unless it holds already. An impossible move is a bug here, so it is an assertion."""
        with self._changed:
            assert new is self._now or new in MOVES[self._now], f"{self._now} -> {new}"
            self._now = new
            self.mark()
            self._changed.notify_all()

    def leave_behind(self) -> None:
        """Enter LEFT_BEHIND, unless the session was closed meanwhile. Callable from any thread."""
        with self._changed:
            if self._now is not Phase.CLOSED:
                self.move(Phase.LEFT_BEHIND)

    def check(self, call: str) -> None:
        """
        Check that *call*, a key of :data:`CALLS`, is allowed now.

        Raises:
            RuntimeError: It is not. The message names the phase and the remedy.
        """
        self.mark()
        if (now := self._now) not in CALLS[call]:
            raise RuntimeError(f"{call}() while the session is {now.value}: {_REMEDIES[now]}")

    def wait_until(self, phases: frozenset[Phase], timeout_s: float) -> bool:
        """Wait until one of *phases* holds, at most *timeout_s*. Return whether it does."""
        with self._changed:
            # wait: timeout_s of the caller; the caller gets False
            return self._changed.wait_for(lambda: self._now in phases, timeout_s)
