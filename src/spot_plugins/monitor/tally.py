"""The figures of a run while it goes on: those of earlier attempts from the event log, and those of this one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from ..clock import wall_time
from ..eventlog.reading import read_event_log
from ..eventlog.watchers import Watched
from ..events import Event, Leaving, Resumed, Salvaged, Staged
from .attempts import CATEGORIES, LAST_SAVES, Attempt, attempt_of
from .figures import groups_of, with_losses

MAX_SEGMENTS: Final = 256
"""Segments of earlier attempts that are read, 16 MiB. More would take seconds from the training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """The figures of a run so far."""

    seconds: dict[str, float]
    """Paid seconds by category, as in a report."""
    lost_steps: int
    """Steps that were trained in vain."""
    num_interruptions: int
    """Attempts that left after a notice or were killed."""
    stall_s: float
    """Seconds that training stood still for saves, in this attempt."""
    began_at: float
    """Begin of the first attempt, in seconds since 1970."""

    @property
    def goodput(self) -> float:
        """Share of the paid time that became steps which are kept, as far as it is known now."""
        paid_s = sum(self.seconds.values())
        return self.seconds["productive"] / paid_s if paid_s else 0.0


class Tally:
    """
    Counts the seconds of one attempt as a report does, and adds those of the earlier ones. Callable from any thread.

    Args:
        watched: The session.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._lock = threading.Lock()
        self._opened = time.monotonic()
        self._read_s = 0.0
        self._stall_s = 0.0
        self._began: float | None = None
        self._start_step = 0
        self._last_save: float | None = None  # begin of a save that may be the last one
        self._trained_until: float | None = None
        self._earlier: list[Attempt] | None = [] if watched.attempt == 1 else None

    def read_earlier(self) -> None:
        """
        Read the event log of the earlier attempts, once. It takes as long as the store.

        Raises:
            StoreError: The store does not answer.
        """
        if self._earlier is not None:
            return
        log = read_event_log(self._watched.store, MAX_SEGMENTS, below=self._watched.attempt)
        self._earlier = [attempt_of(ranks, wall_time(), is_last=False) for ranks in groups_of(log)]

    def begin(self, step: int | None) -> None:
        """Take note that training begins after *step*."""
        self._start_step = step or 0
        self._began = time.monotonic()

    def on_event(self, event: Event) -> None:
        """Count *event*."""
        with self._lock:
            match event:
                case Resumed(load_s=read_s) | Salvaged(push_s=read_s):
                    self._read_s += read_s
                case Staged(trigger=trigger) if trigger in LAST_SAVES:
                    self._last_save = time.monotonic() - event.copy_s
                case Staged(stall_s=stall_s):
                    self._stall_s += stall_s
                case Leaving():
                    self.end()

    def end(self) -> None:
        """Count the time from the begin of the last save on as that of leaving."""
        self._trained_until = self._last_save

    def figures(self) -> RunFigures | None:
        """Return the figures of the run so far. None until the log of earlier attempts is read and training begins."""
        earlier, began = self._earlier, self._began
        if earlier is None or began is None:
            return None
        done = with_losses(earlier, self._start_step)
        own = self._seconds(began, time.monotonic())
        seconds = {name: own[name] + sum(each.seconds[name] for each in done) for name in CATEGORIES}
        start = wall_time() - sum(own.values())
        return RunFigures(
            seconds=seconds,
            lost_steps=sum(each.lost_steps for each in done),
            num_interruptions=sum(each.is_interrupted for each in done),
            stall_s=self._stall_s,
            began_at=min([start, *(each.began_at for each in done)]),
        )

    def _seconds(self, began: float, now: float) -> dict[str, float]:
        startup_s = self._watched.process_s or 0.0
        restore_s = min(self._read_s, began - self._opened)
        last = now if self._trained_until is None else max(self._trained_until, began)
        save_s = min(self._stall_s, last - began)
        return {
            "productive": last - began - save_s,
            "wasted": 0.0,
            "startup": startup_s,
            "prep": began - self._opened - restore_s,
            "restore": restore_s,
            "save": save_s,
            "leave": now - last,
        }
