"""From signals and sources to the agreement of the ranks: who is listened to, and what is made of what they say."""

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
    Looks where this process runs, and listens for notices from then on.

    A signal makes all ranks leave at their next step: whoever sends it waits for that. A source names the end, and
    training goes on until near it.

    Args:
        config: Who is asked, and what they give.
        agreement: Told of every notice.
        bus: Gets the events.
        is_first: Whether to log what was found: one rank of the job does.
    """

    def __init__(self, config: SpotConfig, agreement: Agreement, bus: EventBus, *, is_first: bool) -> None:
        self._agreement = agreement
        self._bus = bus
        self._surroundings = found = look_around(config)
        # --signal=USR1@60 asks for one before the job's end, and it would end the process.
        others = (signal.SIGUSR1,) if "slurm" in found.providers else ()
        self._signals = SignalNotices(self._on_signal, others)
        sources = make_sources(found.sources, config.notice_file, config.grace_s)
        asked = tuple(source.name for source in sources)
        if is_first:
            found.log(asked)
        bus.emit(
            NoticeSourcesFound(
                providers=found.providers, sources=asked, grace_s=found.grace_s, limited_by=found.limited_by
            )
        )
        self._watch = NoticePoller(sources, self._on_announcement)
        self._watch.start()

    @property
    def providers(self) -> tuple[str, ...]:
        """Where this process runs, as far as it is known."""
        return self._surroundings.providers

    def watch_signals(self) -> None:
        """See :meth:`~.session.SpotSession.watch_signals`."""
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
        self._watch.acknowledge()

    def close(self) -> None:
        """Ask nobody any more. Signals are still taken."""
        self._watch.close()

    def _on_signal(self, name: str, received_at: float) -> None:
        grace_s = self._surroundings.signal_grace_s
        self._agreement.notify(notice_of(name, received_at + grace_s, grace_s, at_once=True))
        self._bus.emit(NoticeReceived(source=name, grace_s=grace_s))

    def _on_announcement(self, announcement: Announcement) -> None:
        source, deadline = announcement.source, announcement.deadline
        grace_s = None
        if deadline is None:
            logger.warning("%s: this machine may be taken before long; saving, and going on", source)
            self._agreement.save_soon()
        else:
            grace_s = deadline - time.monotonic()
            self._agreement.notify(notice_of(source, deadline, grace_s, at_once=False))
        self._bus.emit(NoticeReceived(source=source, grace_s=grace_s, kind=announcement.kind))
