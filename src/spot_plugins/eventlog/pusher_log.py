"""The event log in the pusher process: records of the trainer and of this process, on their way to store and disk."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from .. import __version__
from ..clock import wall_time
from ..events import Committed, Event, Leaving, NoticeReceived, Superseded
from ..store import ObjectStore
from .records import Ended, Entry, Heartbeat, Record, TrainerGone, TrainingBegan, body_of, encode_body
from .segments import SegmentWriter

CLOSE_S: Final = 5.0
"""Longest wait in seconds for the last put when the pusher process ends."""

_PUT_WITH: Final = frozenset(
    kind.__name__ for kind in (Committed, Ended, Leaving, NoticeReceived, Superseded, TrainerGone, TrainingBegan)
)
"""Kinds of records with which all that wait are put: commits, and what may be the last before the machine ends."""


class PusherLog:
    """
    The log of one rank. Every method returns at once, except for :meth:`close`, and never raises.

    Args:
        store: The store of the run.
        local: The store of local copies, or None.
        attempt: Number of the attempt.
        rank: The rank. Heartbeats of rank 0 are put at once, because all ranks are at the same step.
        world_size: Number of ranks.
        hide: Removes secrets from a text.
        on_failure: Called once if the store does not take the log again and again, with the reason.
    """

    def __init__(
        self,
        store: ObjectStore,
        local: ObjectStore | None,
        *,
        attempt: int,
        rank: int,
        world_size: int,
        hide: Callable[[str], str],
        on_failure: Callable[[str], None],
    ) -> None:
        self._hide = hide
        self._last_beat: dict[str, Any] | None = None
        self._put_with = _PUT_WITH | ({Heartbeat.__name__} if rank == 0 else set())
        header = cache(lambda: {"world_size": world_size, **_facts()})
        self._writers = [SegmentWriter(store, attempt, rank, header, on_failure)]
        if local is not None:  # what its disk refuses is told by LocalWriteFailed
            self._writers.append(SegmentWriter(local, attempt, rank, header, is_local=True))

    def start(self) -> None:
        """Start the threads."""
        for writer in self._writers:
            writer.start()

    def on_event(self, event: Event) -> None:
        """Record an event of this process."""
        self._record(event)

    def trainer_gone(self) -> None:
        """Record the newest heartbeat, unless the trainer has said that it ends, and that it has ended."""
        if self._last_beat is not None:
            self.add([self._last_beat])
        self._record(TrainerGone())

    def add(self, bodies: list[dict[str, Any]]) -> None:
        """Record what the trainer has sent. Of brief heartbeats, only keep the newest."""
        for body in bodies:
            if body.pop("is_brief", False):
                self._last_beat = body
                continue
            if body["kind"] == Ended.__name__:
                self._last_beat = None
            line = encode_body(body, self._hide)
            for writer in self._writers:
                writer.add(line, puts=body["kind"] in self._put_with)

    def close(self) -> None:
        """Put what waits. Wait :data:`CLOSE_S` for it at most."""
        deadline = time.monotonic() + CLOSE_S
        for writer in self._writers:
            # wait: CLOSE_S in all; the last records are lost
            writer.close(max(0.0, deadline - time.monotonic()))

    def _record(self, entry: Entry) -> None:
        self.add([body_of(Record(wall_time(), time.monotonic(), entry))])


def _facts() -> dict[str, Any]:
    from ..machine.versions import host_versions  # the import takes longer than the trainer should wait at its start

    versions = {"python": platform.python_version(), **host_versions()}
    return {"host": platform.node(), "software": f"spot_plugins {__version__}", "versions": versions}
