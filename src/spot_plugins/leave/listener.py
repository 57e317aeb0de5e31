"""From signals and notice sources to the agreement of the ranks."""

from __future__ import annotations

import logging
import signal
import time

from ..agreement import Agreement, notice_of
from ..config import SpotConfig
from ..events import EventBus, NoticeReceived, NoticeSourcesFound
from ..launch import roster
from ..notices import Announcement, NoticePoller, SignalNotices, look_around, make_sources

logger = logging.getLogger(__name__)


class Listener:
    """
    Finds out where this process runs, and passes notices to the agreement.

    A signal makes all ranks leave at their next step, because its sender waits for the end of the process. A notice
    source names the end, and training continues until near it.

    Args:
        config: The notice sources to ask, and the grace that they give.
        agreement: Gets every notice.
        bus: Gets the events.
        is_first: Whether to log what was found. One rank of the job does.
    """

    def __init__(self, config: SpotConfig, agreement: Agreement, bus: EventBus, *, is_first: bool) -> None:
        self._agreement = agreement
        self._bus = bus
        self._is_first = is_first
        self._surroundings = found = look_around(config)
        # --signal=USR1@60 asks for a SIGUSR1 before the job's end, which would end the process.
        others = (signal.SIGUSR1,) if "slurm" in found.providers else ()
        self._signals = SignalNotices(self._on_signal, others)
        self._sources = make_sources(found.sources, config.notice_file, config.grace_s)
        self._poller = NoticePoller(self._sources, self._on_announcement)

    def open(self) -> None:
        """Emit what was found, and start to ask the notice sources. Signals are taken by :meth:`handle_signals`."""
        found, asked = self._surroundings, tuple(source.name for source in self._sources)
        if self._is_first:
            found.log(asked)
        self._bus.emit(
            NoticeSourcesFound(
                providers=found.providers, sources=asked, grace_s=found.grace_s, limited_by=found.limited_by
            )
        )
        self._poller.start()

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers on which this process runs, as far as they are known."""
        return self._surroundings.providers

    def handle_signals(self) -> None:
        """See :meth:`~.session.SpotSession.handle_signals`."""
        if self._signals.installed:
            self._signals.retake()
        else:
            self._signals.install()
            roster.join()

    def release_signals(self, *, for_good: bool = False) -> None:
        """Give signals back; *for_good*, because of a notice: see :meth:`~.notices.SignalNotices.uninstall`."""
        self._signals.uninstall(for_good=for_good)

    def acknowledge(self) -> None:
        """Let the machine be taken sooner, by whoever has said that it will be."""
        self._poller.acknowledge()

    def close(self) -> None:
        """Ask nobody any more. Signals are still taken."""
        self._poller.close()

    def _on_signal(self, name: str, received_at: float) -> None:
        grace_s = self._surroundings.signal_grace_s
        self._agreement.notify(notice_of(name, received_at + grace_s, grace_s, at_once=True))
        self._bus.emit(NoticeReceived(source=name, grace_s=grace_s))

    def _on_announcement(self, announcement: Announcement) -> None:
        source, deadline = announcement.source, announcement.deadline
        grace_s = None
        if deadline is None:
            logger.warning("%s: this machine may be taken before long; saving once, and training on", source)
            self._agreement.save_soon()
        else:
            grace_s = deadline - time.monotonic()
            self._agreement.notify(notice_of(source, deadline, grace_s, at_once=False))
        self._bus.emit(NoticeReceived(source=source, grace_s=grace_s, kind=announcement.kind))
