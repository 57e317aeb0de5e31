"""
The figures of a report: goodput, the rest of the time, losses and rates.

Goodput is the share of the paid time that became steps which were kept. Time is paid from the start of a process to its
end. The time between two attempts is shown beside it, because the log does not know whether a machine was paid then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from statistics import median
from typing import Final

from ..economics.rates import HOURS_PER_MONTH, exact_interval, rate_of_share
from ..eventlog.reading import EventLog, RankLog
from ..eventlog.records import Started
from ..events import Committed, Resumed, Staged, WrittenLocally
from .attempts import CATEGORIES, Attempt, attempt_of, entries, plausible

DAY_S: Final = 86400.0
HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Phase:
    """Durations of one phase of all saves or starts, on rank 0."""

    name: str
    count: int
    median_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one GPU for one hour, in any currency."""

    spot: float | None = None
    on_demand: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """Money, by the prices that were given. One rank counts as one GPU."""

    gpu_hours: float
    """Hours that were paid, times ranks."""
    spent: float | None
    """Price of these hours on spot machines."""
    lost: float | None
    """Part of it that was paid for other things than steps that were kept."""
    saved: float | None
    """Price of the kept steps alone on machines that are never taken, less what was spent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that a report shows."""

    url: str
    made_at: float
    """Seconds since 1970."""
    attempts: tuple[Attempt, ...]
    seconds: dict[str, float]
    """Seconds by category, of all attempts."""
    waiting_s: float
    """Seconds between attempts."""
    num_interruptions: int
    per_day: tuple[float, float, float]
    """Interruptions per day of paid time, with the ends of the exact 95 % interval."""
    published_per_day: float | None
    """The same by the share of the provider, on as many machines as the run had. None if it is not given."""
    phases: tuple[Phase, ...]
    money: Money | None
    notes: tuple[str, ...]
    """Limits of the log."""

    @property
    def paid_s(self) -> float:
        """Seconds that were paid."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the paid time that became steps which were kept."""
        return self.seconds["productive"] / self.paid_s if self.paid_s else 0.0

    @property
    def kept_steps(self) -> int:
        """Steps that no attempt has trained again."""
        return sum(each.kept_steps for each in self.attempts)

    @property
    def lost_steps(self) -> int:
        """Steps that were trained in vain."""
        return sum(each.lost_steps for each in self.attempts)


def report_of(url: str, log: EventLog, prices: Prices, now: float, monthly_share: float | None = None) -> Report:
    """
    Return the report of *log*, the log of the run at *url*, which is printed as it is.

    Args:
        url: The URL.
        log: The event log.
        prices: The prices of a GPU, as far as they are known.
        now: The present time.
        monthly_share: Share of the machines that the provider says it takes within 30 days. None if it is not known.
    """
    groups = groups_of(log)
    newest = max(log.newest_attempt, groups[-1][0].attempt if groups else 0)
    attempts = with_losses([attempt_of(ranks, now, is_last=ranks[0].attempt == newest) for ranks in groups])
    seconds = {name: sum(each.seconds[name] for each in attempts) for name in CATEGORIES}
    num_interruptions = sum(each.is_interrupted for each in attempts)
    days = max(sum(seconds.values()), 1.0) / DAY_S
    low, high = exact_interval(num_interruptions, days)
    return Report(
        url=url,
        made_at=now,
        attempts=tuple(attempts),
        seconds=seconds,
        waiting_s=sum(max(0.0, after.began_at - before.ended_at) for before, after in pairwise(attempts)),
        num_interruptions=num_interruptions,
        per_day=(num_interruptions / days, low, high),
        published_per_day=None if monthly_share is None else _published_per_day(groups, attempts, monthly_share),
        phases=_phases([ranks[0] for ranks in groups], attempts),
        money=_money(attempts, prices),
        notes=tuple(_notes(log, {each.number for each in attempts})),
    )


def _published_per_day(groups: Sequence[list[RankLog]], attempts: Sequence[Attempt], share: float) -> float:
    """Return the interruptions per day of paid time that a provider's share within 30 days makes."""
    paid_s = sum(each.paid_s for each in attempts)
    machine_s = [each.paid_s * len({rank.host for rank in ranks}) for ranks, each in zip(groups, attempts, strict=True)]
    num_machines = sum(machine_s) / paid_s if paid_s else 1.0
    return rate_of_share(share, HOURS_PER_MONTH).per_hour * DAY_S / HOUR_S * num_machines


def groups_of(log: EventLog) -> list[list[RankLog]]:
    """Return the logs of the ranks of each attempt that has any records. A clock that was set has no effect on them."""
    groups = [list(ranks) for _, ranks in groupby(log.ranks, key=lambda rank: rank.attempt)]
    return [known for ranks in groups if (known := [_steady(rank) for rank in ranks if rank.records])]


def _steady(rank: RankLog) -> RankLog:
    """Return *rank* with the times of a clock that is never set, and agrees with its own one at the end."""
    newest = rank.records[-1]
    ahead_s = newest.at - newest.monotonic
    return replace(rank, records=[replace(each, at=each.monotonic + ahead_s) for each in rank.records])


def with_losses(attempts: Sequence[Attempt], next_start: int | None = None) -> list[Attempt]:
    """
    Return *attempts* with the steps that no later attempt has trained again, and the time of the others.

    Args:
        attempts: The attempts of a run, the oldest first.
        next_start: The step after which an attempt begins that follows them, if there is one.
    """
    starts = [each.start_step for each in attempts] + [next_start]
    return [
        _with_losses(each, [start for start in starts[index + 1 :] if start is not None])
        for index, each in enumerate(attempts)
    ]


def _with_losses(attempt: Attempt, starts: Sequence[int]) -> Attempt:
    """Return *attempt* with its losses. Later attempts have begun at the steps *starts*."""
    start = attempt.start_step
    if start is None:
        return attempt
    if not starts and attempt.how not in ("finished", "running"):
        starts = [
            start if attempt.committed_step is None else attempt.committed_step
        ]  # a next attempt would begin there
    num_steps = attempt.reached_step - start
    kept = max(0, min([attempt.reached_step, *starts]) - start)
    seconds = dict(attempt.seconds)
    if num_steps == 0:  # nothing is known to be done yet
        seconds["prep"] += seconds["productive"]
        seconds["productive"] = 0.0
    else:
        seconds["wasted"] = seconds["productive"] * (num_steps - kept) / num_steps
        seconds["productive"] *= kept / num_steps
    return replace(attempt, kept_steps=kept, lost_steps=num_steps - kept, seconds=seconds)


def _phases(firsts: Sequence[RankLog], attempts: Sequence[Attempt]) -> tuple[Phase, ...]:
    staged = [each for rank in firsts for each in entries(rank.records, Staged)]
    resumed = [each for rank in firsts for each in entries(rank.records, Resumed)]
    durations = {
        "save: training stands still": [each.stall_s for each in staged],
        "save: copy to host memory": [each.copy_s for each in staged],
        "save: write to the local disk": [e.write_s for rank in firsts for e in entries(rank.records, WrittenLocally)],
        "save: push to the store": [each.push_s for rank in firsts for each in entries(rank.records, Committed)],
        "start: program": [
            each.process_s for rank in firsts for each in entries(rank.records, Started) if each.process_s is not None
        ],
        "start: reading of the checkpoint": [each.load_s for each in resumed],
        "start: other preparation": [each.seconds["prep"] for each in attempts if each.trained_from is not None],
    }
    known = {name: plausible(each) for name, each in durations.items()}
    return tuple(Phase(name, len(each), median(each), max(each)) for name, each in known.items() if each)


def _money(attempts: Sequence[Attempt], prices: Prices) -> Money | None:
    if prices == Prices():
        return None
    gpu_hours = sum(each.paid_s * each.world_size for each in attempts) / HOUR_S
    useful = sum(each.seconds["productive"] * each.world_size for each in attempts) / HOUR_S
    spent = None if prices.spot is None else prices.spot * gpu_hours
    on_demand = None if prices.on_demand is None else prices.on_demand * useful
    return Money(
        gpu_hours=gpu_hours,
        spent=spent,
        lost=None if prices.spot is None else prices.spot * (gpu_hours - useful),
        saved=None if spent is None or on_demand is None else on_demand - spent,
    )


def _notes(log: EventLog, known: set[int]) -> list[str]:
    notes = []
    if unlogged := sorted(set(range(1, min(log.newest_attempt, 100_000) + 1)) - known):
        listed = ", ".join(map(str, unlogged[:10])) + (", ..." if len(unlogged) > 10 else "")
        notes.append(f"Attempts without an event log, which no figure includes: {listed}")
    for number, what in (
        (log.num_dropped, "records were dropped by the training, so saves are missing from the middle of an attempt"),
        (log.num_unread, "segments were not read, because there are too many"),
        (log.num_damaged, "lines or segments are damaged, and were left out"),
        (log.num_unknown, "records are of kinds that a later version writes, and were left out"),
    ):
        if number:
            notes.append(f"{number} {what}")
    return notes
