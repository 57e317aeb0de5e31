"""The plan of ``spot plan``: all formulas applied to one input. Begin with :func:`make_plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from ..schedule.daly import daly_interval_s
from .decision import Decision, NextDecision, Prospect, decide, decide_next
from .grace import bytes_in_grace, nodes_to_fit
from .inputs import Inputs
from .intervals import TwoLevels, two_level_intervals, young_interval_s
from .money import best_goodput, break_even_hours, break_even_mean_s, effective_saving
from .rates import HOURS_PER_DAY, mean_s
from .walltime import Costs, Waste, best_interval_s, expected_wall_s, goodput, waste

if TYPE_CHECKING:
    from .simulation import Array

POLL_S: Final = 5.0
"""Seconds until a notice is seen, as the notice sources of this package poll."""

NUM_RUNS: Final = 2000
"""Most runs that are simulated."""
LATE: Final = 0.95
"""Share of the runs that end within the late wall time."""
_MAX_PREEMPTIONS: Final = 5_000_000
"""Most preemptions that are simulated, over all runs."""
_MAX_MACHINES: Final = 2_000_000
"""Most machines that are simulated, over all runs."""
_FEWEST_RUNS: Final = 20
"""Fewer runs have no slowest twentieth."""
_HOPELESS: Final = 0.02
"""Goodput below which nothing is simulated, because the job practically never ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way of saving, at its best interval. Seconds; infinity stands for never."""

    stall_s: float
    push_s: float
    interval_s: float
    """Exact optimum, but at least a push and a step."""
    daly_s: float
    young_s: float
    num_steps: float
    """The interval in whole steps, at least 1."""
    goodput: float
    """Expected share of the wall time that is kept training, without notices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grace:
    """The last save within the grace of a notice."""

    grace_s: float
    reaction_s: float
    """Seconds from the notice until the first byte is sent: the poll, the end of a step, and the copy."""
    push_s: float
    """Seconds to store a checkpoint with all machines."""
    node_bytes: float
    """Bytes that one machine can store in time."""
    nodes_needed: int | None
    """Least number of machines on which the checkpoint fits. None if none is enough."""
    fits: bool
    goodput: float
    """Goodput if the last save after each notice fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wall:
    """Wall time of the whole job in hours. Infinity if it never ends."""

    expected_h: float
    """By the formula, at the estimated rate."""
    expected_at_low_h: float | None
    expected_at_high_h: float | None
    """The same at the limits of the rate. None if the rate was not counted."""
    simulated_h: float | None
    """Mean of the simulated runs. None if there are too many preemptions to simulate them."""
    late_h: float | None
    """Wall time within which 95 % of the simulated runs end. None as above."""
    num_runs: int
    """Number of simulated runs. 0 if there are no preemptions to simulate."""
    walls_h: tuple[float, ...]
    """Wall time of each simulated run. Infinity for a run that was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """Costs in the currency of the prices. None where an option is missing."""

    discount: float
    """Share by which an hour of spot is cheaper."""
    effective_saving: float
    """Share by which kept training on spot is cheaper. Negative if it costs more."""
    break_even_price: float
    """Price of a GPU hour of spot at which both cost the same."""
    break_even_per_day: float
    """Preemptions of the job per day at which both cost the same. Infinity if spot costs nothing."""
    spot_cost: float | None
    on_demand_cost: float | None
    effort_hours: float | None
    """Hours of training after which the saved money has paid the effort. Infinity if it never does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that ``spot plan`` shows."""

    inputs: Inputs
    mean_s: float
    """Mean seconds between preemptions of the job."""
    beside: Way
    """Training continues during the push, as with this package."""
    waste: Waste
    """Use of the time that is not kept, if training continues during the push."""
    blocking: Way
    """Training waits for the push."""
    two_levels: TwoLevels | None
    """None without a rate of crashes. Both levels wait for their writes."""
    grace: Grace | None
    goodput: float
    """The goodput on which the money and the decision rest: with notices if the last save fits into the grace."""
    wall: Wall | None
    money: Money | None
    decision: Decision


def make_plan(inputs: Inputs) -> Plan:
    """Compute the plan for *inputs*. This takes about a second if there are ``train_hours`` to simulate."""
    mean = inputs.mean_s
    costs = costs_of(inputs)
    beside = _way(inputs, costs, mean)
    waits = replace(costs, stall_s=costs.saved_late_s, push_s=0.0)
    grace = _grace(inputs, costs, beside.interval_s)
    is_noticed = last_save_fits(inputs)
    kept = grace.goodput if grace is not None and is_noticed else beside.goodput
    wall = _wall(inputs, costs, beside.interval_s, kept, is_noticed)
    money = _money(inputs, costs, kept, is_noticed)
    return Plan(
        inputs=inputs,
        mean_s=mean,
        beside=beside,
        waste=waste(beside.interval_s, costs, mean),
        blocking=_way(inputs, waits, mean),
        two_levels=_two_levels(inputs, mean),
        grace=grace,
        goodput=kept,
        wall=wall,
        money=money,
        decision=decide(_prospect(inputs, costs, kept, is_noticed, wall, money)),
    )


def costs_of(inputs: Inputs) -> Costs:
    """Return the durations of a job that trains beside its pushes."""
    return Costs(
        stall_s=inputs.stall_s.value,
        push_s=inputs.push_s,
        restart_s=inputs.restart_s.value,
        step_s=inputs.step_s.value,
    )


def _way(inputs: Inputs, costs: Costs, mean: float) -> Way:
    interval_s = best_interval_s(costs, mean)
    return Way(
        stall_s=costs.stall_s,
        push_s=costs.push_s,
        interval_s=interval_s,
        daly_s=daly_interval_s(costs.stall_s, mean),
        young_s=young_interval_s(costs.stall_s, mean),
        num_steps=interval_s if math.isinf(interval_s) else max(1, round(interval_s / inputs.step_s.value)),
        goodput=best_goodput(costs, mean),
    )


def last_save_fits(inputs: Inputs) -> bool:
    """Return whether a save after the notice is stored before the end of the machine."""
    return inputs.grace_s is not None and _reaction_s(inputs) + inputs.push_s <= inputs.grace_s


def _reaction_s(inputs: Inputs) -> float:
    return POLL_S + inputs.step_s.value + inputs.stall_s.value


def _grace(inputs: Inputs, costs: Costs, interval_s: float) -> Grace | None:
    if inputs.grace_s is None:
        return None
    reaction_s, speed = _reaction_s(inputs), inputs.upload_bytes_per_s.value
    return Grace(
        grace_s=inputs.grace_s,
        reaction_s=reaction_s,
        push_s=inputs.push_s,
        node_bytes=bytes_in_grace(inputs.grace_s, reaction_s, speed),
        nodes_needed=nodes_to_fit(inputs.checkpoint_bytes.value, inputs.grace_s, reaction_s, speed),
        fits=last_save_fits(inputs),
        goodput=goodput(interval_s, costs, inputs.mean_s, is_noticed=True),
    )


def _two_levels(inputs: Inputs, mean: float) -> TwoLevels | None:
    if inputs.crashes_per_day is None or inputs.disk_bytes_per_s is None:
        return None
    crash_mean_s = mean_s(inputs.crashes_per_day / HOURS_PER_DAY)
    write_s = inputs.share_bytes / inputs.disk_bytes_per_s.value
    return two_level_intervals(write_s, crash_mean_s, inputs.push_s, mean)


def _wall(inputs: Inputs, costs: Costs, interval_s: float, kept: float, is_noticed: bool) -> Wall | None:
    if inputs.train_hours is None:
        return None

    import numpy as np  # not for every verb: it takes a tenth of a second

    def expected_h(per_hour: float) -> float:
        mean = mean_s(per_hour, inputs.nodes)
        if is_noticed:
            found = goodput(min(interval_s, work_s), costs, mean, is_noticed=True)
            return math.inf if found == 0 else work_s / found / 3600
        return expected_wall_s(work_s, interval_s, costs, mean) / 3600

    work_s = inputs.train_hours * 3600
    low, high = inputs.rate.low_per_hour, inputs.rate.high_per_hour
    walls_h = _simulated_h(inputs, costs, interval_s, kept, is_noticed)
    return Wall(
        expected_h=expected_h(inputs.planned_per_hour),
        expected_at_low_h=None if low is None else expected_h(low),
        expected_at_high_h=None if high is None else expected_h(high),
        simulated_h=float(walls_h.mean()) if len(walls_h) else None,
        late_h=float(np.quantile(walls_h, LATE, method="higher")) if len(walls_h) else None,
        num_runs=0 if math.isinf(inputs.mean_s) else len(walls_h),
        walls_h=tuple(walls_h.tolist()),
    )


def _simulated_h(inputs: Inputs, costs: Costs, interval_s: float, kept: float, is_noticed: bool) -> Array:
    """Return the wall times of simulated runs in hours: none if there would be too many, one if all are the same."""
    import numpy as np  # not for every verb: it takes a tenth of a second

    from .simulation import SEED, Job, random_lives, simulate_wall_s, traced_lives

    mean = inputs.mean_s
    work_s = (inputs.train_hours or 0.0) * 3600
    if math.isinf(mean):
        return np.array([(work_s + costs.stall_s + costs.push_s) / 3600])
    if kept < _HOPELESS:
        return np.array([])
    # Poisson processes add up, so many machines at a rate are one machine at the sum. Those of a trace do not.
    nodes = inputs.nodes if inputs.leases else 1
    num_runs = int(min(NUM_RUNS, _MAX_PREEMPTIONS / (1 + work_s / kept / mean), _MAX_MACHINES / nodes))
    if num_runs < _FEWEST_RUNS:
        return np.array([])
    rng = np.random.default_rng(SEED)
    draw = traced_lives(inputs.leases, rng) if inputs.leases else random_lives(mean, rng)
    job = Job(
        work_s=work_s,
        interval_s=interval_s,
        costs=costs,
        nodes=nodes,
        is_noticed=is_noticed,
    )
    return simulate_wall_s(job, draw, num_runs, max_wall_s=20 * work_s / kept) / 3600


def _money(inputs: Inputs, costs: Costs, kept: float, is_noticed: bool) -> Money | None:
    if inputs.spot_price is None or inputs.on_demand_price is None:
        return None
    spot, demand, hours = inputs.spot_price, inputs.on_demand_price, inputs.train_hours
    gpu_hours = None if hours is None else hours * inputs.gpus
    saving = effective_saving(spot, demand, kept)
    mean = break_even_mean_s(spot / demand, costs, is_noticed=is_noticed)
    effort = inputs.effort_cost
    return Money(
        discount=1 - spot / demand,
        effective_saving=saving,
        break_even_price=demand * kept,
        break_even_per_day=_per_day(mean),
        spot_cost=None if gpu_hours is None else gpu_hours * demand * (1 - saving),
        on_demand_cost=None if gpu_hours is None else gpu_hours * demand,
        effort_hours=None if effort is None else break_even_hours(effort, spot, demand, kept, inputs.gpus),
    )


def _prospect(
    inputs: Inputs, costs: Costs, kept: float, is_noticed: bool, wall: Wall | None, money: Money | None
) -> Prospect:
    high = inputs.rate.high_per_hour
    at_worst = None if high is None else best_goodput(costs, mean_s(high, inputs.nodes), is_noticed=is_noticed)
    late = None if wall is None else wall.late_h
    return Prospect(
        price_ratio=None if money is None else 1 - money.discount,
        goodput=kept,
        goodput_at_worst=at_worst,
        break_even_per_day=None if money is None else money.break_even_per_day,
        train_hours=inputs.train_hours,
        late_hours=math.inf if wall is not None and late is None else late,
        deadline_hours=inputs.deadline_hours,
    )


def next_machines(inputs: Inputs) -> NextDecision:
    """
    Choose the machines for the next attempt of the run whose rate *inputs* has.

    Raises:
        ConfigError: A price is missing.
    """
    if inputs.spot_price is None or inputs.on_demand_price is None:
        raise ConfigError("next says nothing without prices: give spot_price and on_demand_price")
    ratio = inputs.spot_price / inputs.on_demand_price
    mean = break_even_mean_s(ratio, costs_of(inputs), is_noticed=last_save_fits(inputs))
    return decide_next(
        inputs.rate_basis,
        (inputs.rate.low_per_hour or 0.0) * inputs.nodes * HOURS_PER_DAY,
        _per_day(mean),
        inputs.train_hours,
        inputs.deadline_hours,
    )


def _per_day(mean: float) -> float:
    return math.inf if mean == 0 else 86400 / mean
