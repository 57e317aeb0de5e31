"""A run that goes on, looked at again and again: ``spot watch``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Final

from ..config import printable_url
from ..eventlog.reading import EventLog, read_event_log
from ..eventlog.records import Record
from ..store import open_store
from .advice import shown_s
from .attempts import step_of
from .figures import Money, Prices, Report, groups_of, report_of
from .reading import check_log
from .text import JSON_VERSION, end_of, shown_at

RATE_S: Final = 120.0
"""Seconds before the last known step in which the rate of steps is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The knowledge of a run at one moment. Times are seconds since 1970."""

    url: str
    attempt: int
    world_size: int
    how: str
    """``running``, or the end of the attempt, see :class:`.Attempt`."""
    end: str
    """The same for people, with the notice or the error."""
    step: int
    """Last step that is known to be done."""
    step_at: float
    """Time of the record that told it."""
    steps_per_s: float | None
    """Recent rate. None if it is unknown."""
    committed_step: int | None
    """Newest step that all ranks have stored, of this attempt or the one that it resumed from."""
    committed_at: float | None
    """Time of the newest commit of rank 0 in this attempt."""
    goodput: float
    lost_steps: int
    num_interruptions: int
    money: Money | None

    def document(self) -> dict[str, Any]:
        """Return the status as a JSON object."""
        return {"version": JSON_VERSION, **asdict(self)}

    def line(self, now: float) -> str:
        """Return the status as a line. Ages are those at *now*."""
        rate = "" if self.steps_per_s is None else f", {self.steps_per_s:.3g} steps/s"
        stored = "nothing stored yet" if self.committed_step is None else f"step {self.committed_step} stored"
        age = "" if self.committed_at is None else f" {shown_s(max(0.0, now - self.committed_at))} ago"
        state = "" if self.how == "running" else f" {self.end}"
        parts = [
            f"attempt {self.attempt}{state}: step {self.step}{rate}",
            stored + age,
            f"goodput {self.goodput:.1%}",
            f"{self.num_interruptions} interruption{'' if self.num_interruptions == 1 else 's'}",
            f"{self.lost_steps} step{'' if self.lost_steps == 1 else 's'} lost",
        ]
        if self.money is not None and self.money.spent is not None:
            parts.append(f"{self.money.spent:.2f} spent")
        if self.money is not None and self.money.saved is not None:
            parts.append(f"{self.money.saved:.2f} saved")
        return f"{shown_at(self.step_at)}  {', '.join(parts)}"


class Follower:
    """
    Reads the event log of the run at *url* again and again, that of its two newest attempts alone.

    Args:
        url: The URL of the run.
        prices: What a GPU costs, as far as it is known.

    Raises:
        ConfigError: *url* cannot work.
    """

    def __init__(self, url: str, prices: Prices) -> None:
        self._url = url
        self._prices = prices
        self._store = open_store(url)
        self._log = EventLog()
        self._newest: list[Record] | None = None
        self._changed_at = 0.0

    def look(self, now: float) -> Status:
        """
        Return what is known *now*.

        Raises:
            ConfigError: Nothing is there.
            StoreError: The store does not answer.
        """
        # The pusher process of the attempt before may still put its end.
        since = max((rank.attempt for rank in self._log.ranks), default=0) - 1
        found = read_event_log(self._store, since=since)
        found.ranks[:0] = [rank for rank in self._log.ranks if rank.attempt < since]
        check_log(self._url, found)
        self._log = found
        now = self._by_its_clock(found, now)
        return _status_of(report_of(printable_url(self._url), found, self._prices, now), found)

    def _by_its_clock(self, found: EventLog, now: float) -> float:
        """Return the time by the clock of the newest attempt, which is at the newest record when that is first seen."""
        ranks = [rank for rank in found.ranks if rank.records]
        newest = [rank.records[-1] for rank in ranks if rank.attempt == ranks[-1].attempt]
        at = max(record.at for record in newest)
        if newest != self._newest:
            # At the first look nothing else tells how long the attempt has been silent.
            silent_s = 0.0 if self._newest is not None else max(0.0, now - at)
            self._newest, self._changed_at = newest, time.monotonic() - silent_s
        return at + time.monotonic() - self._changed_at


def _status_of(report: Report, log: EventLog) -> Status:
    last = report.attempts[-1]
    records = sorted(chain.from_iterable(rank.records for rank in groups_of(log)[-1]), key=lambda record: record.at)
    told = next((each for each in records if (step_of(each.entry) or 0) >= last.reached_step), records[-1])
    commits = [at for at, _ in last.saves]
    return Status(
        url=report.url,
        attempt=last.number,
        world_size=last.world_size,
        how=last.how,
        end=end_of(last),
        step=last.reached_step,
        step_at=told.at if last.how == "running" else last.ended_at,
        steps_per_s=_rate(records),
        committed_step=last.committed_step if last.committed_step is not None else last.start_step or None,
        committed_at=commits[-1] if commits else None,
        goodput=report.goodput,
        lost_steps=report.lost_steps,
        num_interruptions=report.num_interruptions,
        money=report.money,
    )


def _rate(records: Sequence[Record]) -> float | None:
    """Return the steps per second of the last :data:`RATE_S` before the last record that tells a step."""
    told = [(each.at, step) for each in records if (step := step_of(each.entry)) is not None]
    if not told:
        return None
    at, step = told[-1]
    recent = [(before, number) for before, number in told if before >= at - RATE_S]
    first_at, first = recent[0]
    return (step - first) / (at - first_at) if at > first_at and step > first else None
