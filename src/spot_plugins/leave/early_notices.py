"""Notices before training begins. Nothing is lost then, so the process leaves at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from types import TracebackType
from typing import Final

from ..agreement import Agreement
from ..config import SpotConfig
from ..errors import ConfigError, Preempted
from ..events import EventBus, NoticeReceived
from ..launch import roster
from ..notices import NOT_OBEYED, Announcement, NoticePoller, SignalNotices, look_around, make_sources
from ..program import Lines
from .phase import Phase, PhaseTracker

logger = logging.getLogger(__name__)

POLL_S: Final = 0.1
"""Seconds between two looks for a notice of the agreement."""

ASK_AFTER_S: Final = 1.0
"""Seconds after which notice sources are asked. A start that waits for nothing asks nobody."""

_BEFORE_TRAINING: Final = frozenset({Phase.NEW, Phase.JOINED})


class EarlyNotices:
    """
    Takes signals, and asks notice sources, while a session waits for its store.

    Its ``with`` block ends before the agreement of the ranks is built. From then on, :attr:`agreement` gives the
    notices, until training begins.

    Args:
        config: The notice sources to ask.
        bus: Gets the events.
        lines: Shows an answer to a notice.
        phase: The phase of the session.
    """

    agreement: Agreement | None = None
    """The agreement of the session, once it is built."""

    def __init__(self, config: SpotConfig, bus: EventBus, lines: Lines, phase: PhaseTracker) -> None:
        self._bus = bus
        self._lines = lines
        self._phase = phase
        self._came = threading.Event()
        self._machine_ends = False
        self._ask_at = time.monotonic() + ASK_AFTER_S
        self._surroundings = found = look_around(config)
        others = (signal.SIGUSR1,) if "slurm" in found.providers else ()
        self._signals = SignalNotices(self._on_signal, others)
        self._poller = NoticePoller(
            make_sources(found.sources, config.notice_file, config.grace_s), self._on_announcement
        )

    def __enter__(self) -> EarlyNotices:
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(ConfigError):  # another session has them, and leaves first
                self._signals.install()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._poller.close()
        leaves = isinstance(exc, Preempted)
        has_notice = self._signals.uninstall(for_good=leaves)
        if has_notice and exc is not None and not leaves:
            logger.warning(NOT_OBEYED)
        elif has_notice or leaves:
            roster.leave(machine_ends=self._machine_ends)
        if has_notice and exc is None:
            raise Preempted(None)

    def wait(self, seconds: float) -> None:
        """
        Wait for *seconds*. Callable from any thread.

        Raises:
            Preempted: There is a notice, and training has not begun.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self._is_to_leave():
                raise Preempted(None)
            now = time.monotonic()
            if now > self._ask_at and self.agreement is None:
                self._poller.start()
            if now >= deadline:
                return
            # wait: POLL_S; it looks again for a notice and at the deadline of the caller
            self._came.wait(min(deadline - now, POLL_S))

    def _is_to_leave(self) -> bool:
        if self._phase.now not in _BEFORE_TRAINING:
            return False
        return self._came.is_set() or (self.agreement is not None and self.agreement.notice is not None)

    def _on_signal(self, name: str, received_at: float) -> None:
        self._on_notice(name, self._surroundings.signal_grace_s)

    def _on_announcement(self, announcement: Announcement) -> None:
        if announcement.deadline is not None:
            self._machine_ends = True
            self._on_notice(announcement.source, announcement.deadline - time.monotonic())

    def _on_notice(self, source: str, grace_s: float) -> None:
        self._lines.answer(f"{source}: leaving at once, because training has not begun")
        self._bus.emit(NoticeReceived(source=source, grace_s=grace_s))
        self._came.set()
