"""Goodput and expected wall time of a job that is preempted at random, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .intervals import check_durations, exact_interval_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Durations of a job in seconds, each at least 0 and finite."""

    stall_s: float
    """C, for which training stands still for one save."""
    push_s: float = 0.0
    """L, from the end of the stall until the save is stored. Training continues meanwhile."""
    restart_s: float = 0.0
    """R, from a preemption until training continues: a new machine, its start, and the read of the checkpoint."""
    step_s: float = 0.0
    """Of one step. No interval is shorter, because saves are made at the ends of steps."""

    def __post_init__(self) -> None:
        for name in ("stall_s", "push_s", "restart_s", "step_s"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={value} must be at least 0 and finite")

    @property
    def saved_late_s(self) -> float:
        """Seconds that the last save before a preemption takes, from its beginning until it is stored."""
        return self.stall_s + self.push_s


def best_interval_s(costs: Costs, mean_s: float) -> float:
    """
    Compute the exact optimum, but not less than a push or a step, because pushes must not overlap.

    Args:
        costs: The durations of the job.
        mean_s: Mean seconds between preemptions of the job, above 0. At infinity the interval is infinite.

    Raises:
        ValueError: *mean_s* is not above 0.
    """
    return max(exact_interval_s(costs.stall_s, mean_s), costs.push_s, costs.step_s)


def wall_per_work(interval_s: float, costs: Costs, mean_s: float) -> float:
    """
    Compute the expected wall time per training time: ``(M/T) exp((R + L)/M) (exp((T + C)/M) - 1)``.

    With L = 0 this is Daly's model (Daly 2006, FGCS 22:303), in which restarts can fail as well. With a push beside
    training, the first save after a preemption is stored after R + T + C + L seconds, and each later one T + C seconds
    after the one before. So L counts like a longer restart, and the formula is exact.

    Args:
        interval_s: T, seconds of training between two saves, above 0. Infinity means no saves.
        costs: The durations of the job.
        mean_s: M, mean seconds between preemptions of the job, above 0.

    Returns:
        At least 1. Infinity if there are preemptions and no saves, or if the value exceeds all numbers.

    Raises:
        ValueError: An argument is out of range.
    """
    check_durations(costs.stall_s, mean_s)
    if not interval_s > 0:
        raise ValueError(f"interval_s={interval_s} must be above 0")
    if math.isinf(interval_s):
        return 1.0 if math.isinf(mean_s) else math.inf
    if math.isinf(mean_s):
        return 1 + costs.stall_s / interval_s
    try:
        segment = math.expm1((interval_s + costs.stall_s) / mean_s)
        return mean_s / interval_s * math.exp((costs.restart_s + costs.push_s) / mean_s) * segment
    except OverflowError:
        return math.inf


def goodput(interval_s: float, costs: Costs, mean_s: float, *, is_noticed: bool = False) -> float:
    """
    Compute the expected share of the wall time that is spent on training that is kept.

    Args:
        interval_s: As for :func:`wall_per_work`, whose inverse this is.
        costs: As there.
        mean_s: As there.
        is_noticed: True if a notice precedes each preemption early enough for one more save. Then all training is kept
            except that of the last C + L seconds: ``T/(T + C) exp(-(R + C + L)/M)``.

    Raises:
        ValueError: An argument is out of range.
    """
    unnoticed = 1 / wall_per_work(interval_s, costs, mean_s)
    if not is_noticed:
        return unnoticed
    trains = 1.0 if math.isinf(interval_s) else interval_s / (interval_s + costs.stall_s)
    return trains * math.exp(-(costs.restart_s + costs.saved_late_s) / mean_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Waste:
    """Shares of the wall time that are no kept training. With the goodput they add up to 1."""

    stalls: float
    """Saves that were stored."""
    restarts: float
    """Restarts, each of which costs R seconds, or the life of the machine if that is shorter: ``1 - exp(-R/M)``."""
    repeated: float
    """Training since the last stored save, and the saves in it."""


def waste(interval_s: float, costs: Costs, mean_s: float) -> Waste:
    """
    Compute what the time that is not kept was spent on, without notices.

    Args:
        interval_s: As for :func:`wall_per_work`.
        costs: As there.
        mean_s: As there.

    Raises:
        ValueError: An argument is out of range.
    """
    kept = goodput(interval_s, costs, mean_s)
    stalls = kept * costs.stall_s / interval_s
    restarts = -math.expm1(-costs.restart_s / mean_s)
    return Waste(stalls=stalls, restarts=restarts, repeated=max(0.0, 1 - kept - stalls - restarts))


def expected_wall_s(work_s: float, interval_s: float, costs: Costs, mean_s: float) -> float:
    """
    Compute the expected wall time of a job of *work_s* seconds of training, without notices.

    If the job is shorter than the interval, its end is the only save.

    Args:
        work_s: Seconds of training without saves and preemptions, at least 0 and finite.
        interval_s: As for :func:`wall_per_work`.
        costs: As there.
        mean_s: As there.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= work_s < math.inf:
        raise ValueError(f"work_s={work_s} must be at least 0 and finite")
    if work_s == 0:
        return 0.0
    return work_s * wall_per_work(min(interval_s, work_s), costs, mean_s)
