"""
Monte Carlo of whole jobs: the wall times of many runs, from a rate or from the leases of a trace.

All runs advance together, many preemptions per iteration, as arrays of numpy. The same seed gives the same times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .goodput import Lease
from .walltime import Costs

Array: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[[int], Array]
"""Function that returns this many random lives of a machine, in seconds from its start to its preemption."""

SEED: Final = 20262911
_POOL: Final = 1_000_000
"""Number of leases that are drawn from a trace once. Lives are drawn from them."""
_AHEAD: Final = 31
"""Number of lives that are drawn at once for each machine."""
_BLOCK: Final = 2**19
"""Number of lives that are drawn at once for all machines, which limits the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job to be simulated."""

    work_s: float
    """Seconds of training, above 0 and finite."""
    interval_s: float
    """Seconds of training between two saves, above 0. Infinity means that the end is the only save."""
    costs: Costs
    nodes: int = 1
    """Number of machines. A preemption of any of them interrupts the job."""
    is_noticed: bool = False
    """As for :func:`.walltime.goodput`."""

    def __post_init__(self) -> None:
        if not 0 < self.work_s < math.inf:
            raise ValueError(f"work_s={self.work_s} must be above 0 and finite")
        if not self.interval_s > 0:
            raise ValueError(f"interval_s={self.interval_s} must be above 0")
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes} must be at least 1")


def random_lives(mean_s: float, rng: np.random.Generator) -> Draw:
    """Return a source of exponential lives with the mean *mean_s*, in seconds."""
    return lambda size: rng.exponential(mean_s, size)


def traced_lives(leases: Sequence[Lease], rng: np.random.Generator) -> Draw:
    """
    Return a source of lives that are drawn from *leases* with replacement.

    A lease that was not preempted says only that the machine lived at least so long. So another lease continues it,
    which keeps the rate of preemptions of the trace.

    Raises:
        ValueError: No lease was preempted.
    """
    if not any(each.is_preempted for each in leases):
        raise ValueError("no lease was preempted, so there is no life of a machine to draw")
    drawn = rng.integers(len(leases), size=_POOL)
    ends = np.cumsum(np.array([each.length_s for each in leases])[drawn])
    lives = np.diff(ends[np.array([each.is_preempted for each in leases])[drawn]], prepend=0.0)
    return lambda size: lives[rng.integers(len(lives), size=size)]


def simulate_wall_s(job: Job, draw: Draw, num_runs: int, max_wall_s: float) -> Array:
    """
    Simulate *num_runs* runs of *job*. All machines are new at the start, and a lost one is replaced at once.

    Args:
        job: The job.
        draw: Source of the lives of machines.
        num_runs: Number of runs, at least 1.
        max_wall_s: A run that takes longer is given up, above 0 and finite.

    Returns:
        Wall time of each run in seconds. Infinity for a run that was given up.
    """
    chunk = max(1, _BLOCK // (job.nodes * (_AHEAD + 1)))
    sizes = [min(chunk, num_runs - start) for start in range(0, num_runs, chunk)]
    return np.concatenate([_chunk_of_walls(job, draw, size, max_wall_s) for size in sizes])


def _chunk_of_walls(job: Job, draw: Draw, num_runs: int, max_wall_s: float) -> Array:
    walls = np.full(num_runs, math.inf)
    active = np.arange(num_runs)
    ends = draw(num_runs * job.nodes).reshape(num_runs, job.nodes)
    kept_s = np.zeros(num_runs)
    now_s = np.full(num_runs, -job.costs.restart_s)  # so that the first start is no restart
    while len(active):
        ends, taken = _next_preemptions(ends, draw)
        before = np.column_stack([now_s, taken[:, :-1]])
        is_known = np.isfinite(taken)
        up_s = np.where(is_known, taken, 0.0) - np.where(is_known, before + job.costs.restart_s, 1.0)
        kept = _kept_s(job, up_s)
        sums = kept_s[:, None] + np.cumsum(kept, axis=1)
        needed_s = _needed_s(job, job.work_s - (sums - kept))
        is_done = needed_s <= up_s
        first = is_done.argmax(axis=1)
        rows = np.arange(len(active))
        ended = is_done[rows, first]
        walls[active[ended]] = (before[rows, first] + job.costs.restart_s + needed_s[rows, first])[ended]
        now_s = np.where(is_known, taken, -math.inf).max(axis=1)
        continues = ~ended & (now_s < max_wall_s)
        active, ends, kept_s, now_s = active[continues], ends[continues], sums[continues, -1], now_s[continues]
    return walls


def _next_preemptions(ends: Array, draw: Draw) -> tuple[Array, Array]:
    """
    Draw the next preemptions of several jobs, up to the moment after which not all are drawn.

    Args:
        ends: End of the present life of each machine, shape (jobs, machines).
        draw: Source of lives.

    Returns:
        The ends of the lives at that moment, and the preemptions until then in order, filled up with infinity.
    """
    lives = draw(ends.size * _AHEAD).reshape(*ends.shape, _AHEAD)
    times = np.cumsum(np.concatenate([ends[:, :, None], lives], axis=2), axis=2)
    drawn_until = times[:, :, -1].min(axis=1)
    is_over = times <= drawn_until[:, None, None]
    later = np.where(is_over, math.inf, times).min(axis=2)
    is_last = np.isinf(later)  # the machine that ends at that moment
    later[is_last] = np.broadcast_to(drawn_until[:, None], later.shape)[is_last] + draw(int(is_last.sum()))
    times[~is_over] = math.inf
    return later, np.sort(times.reshape(len(ends), -1), axis=1)


def _needed_s(job: Job, work_s: Array) -> Array:
    """Return the seconds until *work_s* of training is done and stored, with all saves on the way."""
    num_saves = np.ceil(work_s / job.interval_s) if math.isfinite(job.interval_s) else np.ones_like(work_s)
    return work_s + np.maximum(num_saves, 1) * job.costs.stall_s + job.costs.push_s


def _kept_s(job: Job, up_s: Array) -> Array:
    """Return the seconds of training that are kept after *up_s* seconds without a restart end by a preemption."""
    costs = job.costs
    cycle_s = job.interval_s + costs.stall_s
    if not job.is_noticed:
        if math.isinf(cycle_s):
            return np.zeros_like(up_s)
        return np.maximum(0.0, np.floor((up_s - costs.push_s) / cycle_s)) * job.interval_s
    trained_s = np.maximum(0.0, up_s - costs.saved_late_s)
    if math.isinf(cycle_s):
        return trained_s
    num_saves = np.floor(trained_s / cycle_s)
    return num_saves * job.interval_s + np.minimum(trained_s - num_saves * cycle_s, job.interval_s)
