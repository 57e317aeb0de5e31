"""From signals and notice sources to the agreement of the ranks."""

from __future__ import annotations

import logging
import signal
import time
from datetime import timedelta
from typing import Final

from ..agreement import Agreement, notice_of
from ..clock import SystemClock
from ..config import SpotConfig
from ..events import EventBus, NoticeReceived, NoticeSourcesFound
from ..launch import roster
from ..notices import Announcement, NoticePoller, SignalNotices, look_around, make_sources
from ..program import Lines
from .phase import Phase, PhaseTracker

_AWAITS: Final = {
    Phase.JOINED: "leaving after the first step",
    Phase.PAUSED: "waiting for the next check in the pause",
    Phase.LEAVING: "already leaving, waiting until the last step is stored",
}
"""The next thing that a process does after a signal, by its phase. In all others it ends the step."""


class Listener:
    """
    Finds out where this process runs, and passes notices to the agreement.

    A signal makes all ranks leave at their next step, because its sender waits for the end of the process. A notice
    source names the end, and training continues until near it.

    Args:
        config: The notice sources to ask, and the grace that they give.
        agreement: Gets every notice.
        bus: Gets the events.
        lines: Shows an answer to every notice.
        phase: The phase of the session, on which the answer depends.
        is_first: Whether to log what was found. One rank of the job does.
    """

    def __init__(
        self,
        config: SpotConfig,
        agreement: Agreement,
        bus: EventBus,
        lines: Lines,
        phase: PhaseTracker,
        *,
        is_first: bool,
    ) -> None:
        self.awaits: str | None = None
        """The next thing that this process does after a signal. None: what the phase says."""
        self.machine_ends = False
        """True if a notice source has said that the machine of this process will be taken."""
        self._lines = lines
        self._phase = phase
        self._agreement = agreement
        self._bus = bus
        self._is_first = is_first
        self._surroundings = found = look_around(config)
        # --signal=USR1@60 asks for a SIGUSR1 before the job's end, which would end the process.
        others = (signal.SIGUSR1,) if "slurm" in found.providers else ()
        self._signals = SignalNotices(
            self._on_signal, others, on_again=self._on_signal_again, leaves=lambda: self.is_pressed
        )
        self._sources = make_sources(found.sources, config.notice_file, config.grace_s)
        self._poller = NoticePoller(self._sources, self._on_announcement)

    def open(self) -> None:
        """Emit what was found, and start to ask the notice sources. Signals are taken by :meth:`handle_signals`."""
        found, asked = self._surroundings, tuple(source.name for source in self._sources)
        if self._is_first:
            found.warn()
        self._bus.emit(
            NoticeSourcesFound(
                providers=found.providers, sources=asked, grace_s=found.grace_s, limited_by=found.limited_by
            )
        )
        self._poller.start()

    @property
    def summary(self) -> str | None:
        """The sentence about the notices that can come. None if a warning has said that none can."""
        return self._surroundings.summary([source.name for source in self._sources])

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers on which this process runs, as far as they are known."""
        return self._surroundings.providers

    @property
    def is_pressed(self) -> bool:
        """True if there is a notice that is to be obeyed at once, or whose time is up."""
        notice = self._agreement.notice
        return notice is not None and (notice.at_once or time.monotonic() > notice.deadline - notice.margin_s)

    def handle_signals(self) -> None:
        """See :meth:`~.session.SpotSession.handle_signals`."""
        if self._signals.installed:
            self._signals.retake()
        else:
            self._signals.install()
            roster.join()

    def shield(self, *, on: bool) -> None:
        """See :meth:`~.notices.SignalNotices.shield`."""
        self._signals.shield(on=on)

    def release_signals(self, *, for_good: bool = False) -> bool:
        """Give signals back; *for_good*, because of a notice: see :meth:`~.notices.SignalNotices.uninstall`."""
        return self._signals.uninstall(for_good=for_good)

    def acknowledge(self) -> None:
        """Let the machine be taken sooner, by whoever has said that it will be."""
        self._poller.acknowledge()

    def close(self) -> None:
        """Ask nobody any more. Signals are still taken."""
        self._poller.close()

    def _on_signal(self, name: str, received_at: float) -> None:
        grace_s = self._surroundings.signal_grace_s
        known = self._agreement.notice
        if known is None or not known.at_once:  # else the rank that has passed it on has said so
            self._answer(name, received_at + grace_s)
        self._agreement.notify(notice_of(name, received_at + grace_s, grace_s, at_once=True))
        self._bus.emit(NoticeReceived(source=name, grace_s=grace_s))

    def _on_signal_again(self, name: str) -> None:
        notice = self._agreement.notice
        if notice is not None:
            self._answer(f"{name} after the notice", notice.deadline)

    def _answer(self, name: str, deadline: float) -> None:
        """Show at once what *name* leads to, because a step may be long. On the thread of the signals."""
        awaits = self.awaits or _AWAITS.get(self._phase.now, "waiting for the end of the step")
        self._lines.answer(f"{name}: {awaits}, {_left(deadline)} left")

    def _on_announcement(self, announcement: Announcement) -> None:
        source, deadline = announcement.source, announcement.deadline
        grace_s = None
        if deadline is None:
            text = f"{source}: this machine may be taken before long; saving once, and training on"
            self._lines.answer(text, logging.WARNING)
            self._agreement.save_soon()
        else:
            self.machine_ends = True
            grace_s = deadline - time.monotonic()
            known = self._agreement.notice
            if known is None or deadline < known.deadline - 1.0:
                at = SystemClock().utc() + timedelta(seconds=grace_s)
                taken = f"{source}: this machine will be taken at {at:%H:%M:%S} UTC, {_left(deadline)} left"
                self._lines.answer(f"{taken}: {self._use_of_time()}")
            self._agreement.notify(notice_of(source, deadline, grace_s, at_once=False))
        self._bus.emit(NoticeReceived(source=source, grace_s=grace_s, kind=announcement.kind))

    def _use_of_time(self) -> str:
        """Return what this process does with the time that a notice source leaves."""
        if self.awaits is not None:
            return self.awaits
        if self._phase.now is Phase.TRAINING:
            return "training on, and saving in time"
        return _AWAITS.get(self._phase.now, "waiting for the end of the step")


def _left(deadline: float) -> str:
    return f"{max(0.0, deadline - time.monotonic()):.0f} s"
