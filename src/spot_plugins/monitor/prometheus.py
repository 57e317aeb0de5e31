"""Metrics of a training for Prometheus: ``on_event=Metrics()`` in any host."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from os import PathLike
from typing import Final

from ..errors import ConfigError, SpotError
from ..eventlog.watchers import Watched, Watcher
from ..events import Committed, Event, Leaving, NoticeReceived, SharesCounted
from ..format.keys import VERIFIED_KEY
from ..store import get_at_most, patiently
from .cadence import Cadence
from .tally import Tally
from .ticker import Ticker

try:
    from prometheus_client import CollectorRegistry
except ImportError:
    raise ConfigError("metrics need the package prometheus_client: pip install 'spot_plugins[metrics]'") from None
from .instruments import Instruments
from .outlets import DEFAULT_PORT, outlet_of

logger = logging.getLogger(__name__)

EVERY_S: Final = 15.0
"""Seconds from one text file to the next. After commits and notices one is written at once."""

VERIFIED_EVERY_S: Final = 3600.0
"""Seconds from one look for the note of ``spot verify`` to the next."""

CLOSE_S: Final = 2.0
"""Longest wait in seconds for the last metrics at the end of a session."""

_MAX_NOTE_BYTES: Final = 4096
_NO_FAILURES: Final = ("Preempted", "KeyboardInterrupt")


class Metrics(Watcher):
    """
    Metrics for Prometheus. Give one to any host, on every rank: ``SpotCheckpoint(url, on_event=Metrics())``.

    The first rank of each machine serves its metrics at a port. Each rank has a text file of its own, and a group of
    its own in a Pushgateway. A target that does not work is told by one warning and tried again. It disturbs nothing,
    because the training thread only counts, and a thread of this package does the rest.

    Args:
        targets: Ports of 127.0.0.1, addresses (``0.0.0.0:9477``), URLs of Pushgateways, and directories of the textfile
            collector of node_exporter. None given: port 9477.

    Raises:
        ConfigError: A target is none of these.
    """

    def __init__(self, *targets: int | str | PathLike[str]) -> None:
        self._targets = targets
        self._outlets = [outlet_of(target) for target in targets or (DEFAULT_PORT,)]
        self._registry = CollectorRegistry()
        self._instruments = Instruments()
        self._registry.register(self._instruments)
        self._told: set[str] = set()
        self._session: _Session | None = None

    def __reduce__(self) -> tuple[type[Metrics], tuple[int | str | PathLike[str], ...]]:
        """Let a process that is spawned with a copy begin anew."""
        return Metrics, self._targets

    def __call__(self, event: Event) -> None:
        """Count *event*."""
        self._instruments.on_event(event)
        if self._session is not None:
            self._session.on_event(event)

    def open(self, watched: Watched) -> None:
        """Begin with a session."""
        self._session = session = _Session(watched, self._write, self._read)
        self._instruments.open(watched, session.tally if watched.rank == 0 else None, session.cadence)
        session.start()

    def begin(self, step: int | None) -> None:
        """Take note that training begins."""
        self._instruments.begin()
        if self._session is not None:
            self._session.begin(step)

    def close(self, *, is_finished: bool, error: str | None) -> None:
        """Write the last metrics, and let go of all targets."""
        session, self._session = self._session, None
        if session is None:
            return
        if not session.has_begun and error not in (None, *_NO_FAILURES):
            self._instruments.fail_to_resume()
        session.close(lambda: self._close(session.watched, is_finished=is_finished))
        self._instruments.close()

    def _write(self, session: _Session, is_woken: bool) -> None:
        for outlet in self._outlets:
            if is_woken or outlet.is_periodic:
                self._try(outlet.target, outlet.write, self._registry, session.watched)

    def _read(self, session: _Session) -> None:
        """Read from the store what only the store knows. On rank 0."""
        self._try("the event log of the run", session.tally.read_earlier)
        self._try("the note of spot verify", self._read_note, session.watched)

    def _read_note(self, watched: Watched) -> None:
        try:
            note = json.loads(patiently(lambda: get_at_most(watched.store, VERIFIED_KEY, _MAX_NOTE_BYTES)))
            at = datetime.fromisoformat(note["verified_at"]).timestamp()
        except (KeyError, ValueError, TypeError, RecursionError):
            return  # there is none, or none that can be read, which does not count as one
        self._instruments.set("spot_last_verify_timestamp_seconds", at)

    def _close(self, watched: Watched, *, is_finished: bool) -> None:
        for outlet in self._outlets:
            if not is_finished:
                self._try(outlet.target, outlet.write, self._registry, watched)
            self._try(outlet.target, lambda outlet=outlet: outlet.close(watched, is_finished=is_finished))

    def _try(self, target: str, call: Callable[..., object], *arguments: object) -> None:
        """Make a call that must not end a thread. Tell its first failure."""
        try:
            call(*arguments)
        except (OSError, SpotError) as error:
            if target not in self._told:
                self._told.add(target)
                logger.warning("metrics: %s does not work, and is tried again: %s. Training continues", target, error)
        except Exception:
            logger.exception("metrics: a bug with %s; training continues", target)


class _Session:
    """The figures of one session, and the threads that pass them on."""

    def __init__(
        self, watched: Watched, write: Callable[[_Session, bool], None], read: Callable[[_Session], None]
    ) -> None:
        self.watched = watched
        self.tally = Tally(watched)
        self.cadence = Cadence(watched)
        self.has_begun = False
        self._writer = Ticker("spot-metrics", EVERY_S, lambda is_woken: write(self, is_woken))
        self._reader = Ticker("spot-verified", VERIFIED_EVERY_S, lambda _: read(self))

    def start(self) -> None:
        """Start the threads. The store is read by rank 0 alone."""
        self._writer.start()
        if self.watched.rank == 0:
            self._reader.start()

    def begin(self, step: int | None) -> None:
        """Take note that training begins after *step*."""
        self.has_begun = True
        self.tally.begin(step)
        self.cadence.begin(step)
        self._writer.wake()

    def on_event(self, event: Event) -> None:
        """Count *event*, and let the targets know soon if it is worth that."""
        self.tally.on_event(event)
        self.cadence.on_event(event)
        if isinstance(event, Committed | SharesCounted | NoticeReceived | Leaving):
            self._writer.wake()

    def close(self, last: Callable[[], None]) -> None:
        """Stop the threads. The writer calls *last*."""
        if self.watched.rank == 0:
            self._reader.close(lambda: None, 0.0)
        # wait: CLOSE_S; the last metrics are lost
        self._writer.close(last, CLOSE_S)
