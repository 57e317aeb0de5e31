"""A plan as one page of text, and as a JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from .decision import NextDecision
from .inputs import BYTES_PER_GBIT, Figure
from .planning import LATE, Plan, Way
from .rates import LEVEL

VERSION: Final = 1
"""Version of the JSON document. It changes if a field goes away or changes its meaning."""

_UNITS: Final = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def to_json(plan: Plan) -> str:
    """Return *plan* as a JSON document. Durations are in seconds unless a name says hours. Never is null."""
    return json.dumps({"version": VERSION, **_finite(asdict(plan))}, indent=2)


def _finite(value: Any) -> Any:
    """Return *value* without leases and simulated runs, and with None in place of infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items() if name not in ("leases", "walls_h")}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def next_to_json(decision: NextDecision) -> str:
    """Return *decision* as a JSON document on one line."""
    return json.dumps({"version": VERSION, "next": decision.choice, "reason": decision.reason})


def to_text(plan: Plan) -> str:
    """Return *plan* as a page of text."""
    sections = (_inputs(plan), _preemptions(plan), _saves(plan), _grace(plan), _time(plan), _money(plan))
    texts = ["\n".join(section) for section in sections]
    return "\n\n".join([*texts, f"Recommendation: {plan.decision.choice}, because {plan.decision.reason}."])


def duration(seconds: float) -> str:
    """Return *seconds* with two or three digits and a unit that suits them."""
    if math.isinf(seconds):
        return "never"
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _size(num_bytes: float) -> str:
    unit, name = (1e12, "TB") if num_bytes >= 1e12 else (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{num_bytes / unit:.3g} {name}"


def _speed(figure: Figure) -> str:
    return f"{figure.value / BYTES_PER_GBIT:.3g} Gbit/s ({figure.value / 1e6:,.0f} MB/s) per node"


def _hours(hours: float) -> str:
    return "never ends" if math.isinf(hours) else f"{hours:,.4g} h"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _line(name: str, value: str, basis: str = "") -> str:
    return f"  {name:<21}{value:<33}{basis}".rstrip()


def _inputs(plan: Plan) -> Iterator[str]:
    now = plan.inputs
    yield f"Plan for {_count(now.gpus, 'GPU')} on {_count(now.nodes, 'node')}"
    yield _line("checkpoint", _size(now.checkpoint_bytes.value), now.checkpoint_bytes.basis)
    yield _line("upload", _speed(now.upload_bytes_per_s), now.upload_bytes_per_s.basis)
    if now.disk_bytes_per_s is not None:
        yield _line("local disk", _speed(now.disk_bytes_per_s), now.disk_bytes_per_s.basis)
    yield _line("step", duration(now.step_s.value), now.step_s.basis)
    yield _line("stall of a save", duration(now.stall_s.value), now.stall_s.basis)
    yield _line("restart", duration(now.restart_s.value), now.restart_s.basis)


def _preemptions(plan: Plan) -> Iterator[str]:
    rate = plan.inputs.rate
    yield "Preemptions"
    yield _line("per machine and day", f"{rate.per_hour * 24:.3g}", plan.inputs.rate_basis)
    if rate.low_per_hour is not None and rate.high_per_hour is not None:
        limits = f"{rate.low_per_hour * 24:.3g} to {rate.high_per_hour * 24:.3g}"
        yield _line(f"{LEVEL:.0%} interval", limits, "exact, by Garwood")
    is_limit = plan.inputs.planned_per_hour > rate.per_hour
    why = "at the upper limit, because no preemption was counted" if is_limit else "any node taken interrupts the job"
    yield _line("of the job", _every(plan.mean_s), why)


def _every(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"one in {duration(seconds)}"


def _saves(plan: Plan) -> Iterator[str]:
    yield "Save every                 best     in steps    Daly     Young    waste"
    yield _way("push beside training", plan.beside)
    yield _way("waiting for the push", plan.blocking)
    lost = plan.waste
    yield (
        f"  of the first waste: stalls {lost.stalls:.2%}, restarts {lost.restarts:.2%}, training that is repeated "
        f"{lost.repeated:.2%}"
    )
    if (two := plan.two_levels) is not None:
        yield (
            f"  two levels, waiting: local disk every {duration(two.local_s)}, store every {duration(two.store_s)}, "
            f"waste {two.waste:.1%} and not {two.waste_of_store_alone:.1%}"
        )
    yield "  best: the exact optimum, at least a push and a step; waste: time that is no kept training, without notices"


def _way(name: str, way: Way) -> str:
    steps = "never" if math.isinf(way.num_steps) else f"{way.num_steps:,}"
    times = f"{duration(way.interval_s):<9}{steps:<12}{duration(way.daly_s):<9}{duration(way.young_s):<9}"
    return f"  {name:<25}{times}{1 - way.goodput:.1%}"


def _grace(plan: Plan) -> Iterator[str]:
    yield "Last save within the grace"
    if (grace := plan.grace) is None:
        yield "  unknown: give --grace, the seconds from a notice to the end of the machine"
        return
    push = f"{duration(grace.reaction_s)} until the first byte, then {duration(grace.push_s)} for the push"
    yield _line(f"{grace.grace_s:g} s of grace", "the save fits" if grace.fits else "the save does not fit", push)
    yield _line("in time per node", _size(grace.node_bytes) if grace.node_bytes else "nothing", "after that reaction")
    needed = "never" if grace.nodes_needed is None else f"from {_count(grace.nodes_needed, 'node')} on"
    yield _line("the checkpoint fits", needed, "each node stores its share")
    if grace.fits:
        yield _line("waste then", f"{1 - grace.goodput:.1%}", "if each preemption has its notice")


def _time(plan: Plan) -> Iterator[str]:
    yield "Wall time"
    if (wall := plan.wall) is None or plan.inputs.train_hours is None:
        yield "  unknown: give --train-hours, the hours of training without preemptions"
        return
    yield _line("training alone", _hours(plan.inputs.train_hours), "given")
    fits = plan.grace is not None and plan.grace.fits
    notices = "with notices" if fits else "without notices"
    yield _line("on spot, expected", _hours(wall.expected_h), f"formula for random preemptions, {notices}")
    if wall.expected_at_low_h is not None and wall.expected_at_high_h is not None:
        limits = f"{_hours(wall.expected_at_low_h)} to {_hours(wall.expected_at_high_h)}"
        yield _line("at the rate's limits", limits, "the same formula")
    if wall.simulated_h is None or wall.late_h is None:
        yield "  not simulated, because there are too many preemptions"
    elif wall.num_runs:
        source = "leases of the trace" if plan.inputs.leases else "random preemptions"
        yield _line("simulated, mean", _hours(wall.simulated_h), f"{wall.num_runs:,} runs with {source}")
        yield _line(f"simulated, {LATE:.0%}", f"within {_hours(wall.late_h)}", "the same runs")


def _money(plan: Plan) -> Iterator[str]:
    yield "Money, in the currency of the given prices"
    if (money := plan.money) is None:
        yield "  unknown: give --spot-price and --on-demand-price, each per GPU hour. No price is built in"
        return
    yield _line("discount per hour", f"{money.discount:.0%}", "of the given prices")
    saving = "none" if math.isinf(money.effective_saving) else f"{money.effective_saving:.1%}"
    yield _line("effective saving", saving, f"{plan.goodput:.1%} of the time is kept training")
    if money.spot_cost is not None and money.on_demand_cost is not None:
        costs = f"{_cost(money.spot_cost)} on spot, {_cost(money.on_demand_cost)} on demand"
        yield _line("cost", costs, "expected, without storage and traffic")
    yield _line("spot pays below", f"{money.break_even_price:.4g} per GPU hour", "at this rate")
    yield _line("spot pays up to", f"{money.break_even_per_day:.3g} preemptions a day", "of the job, at these prices")
    if money.effort_hours is not None:
        paid = "never" if math.isinf(money.effort_hours) else f"after {money.effort_hours:,.4g} h of training"
        yield _line("effort is paid back", paid, "training that is kept, on all GPUs")


def _cost(amount: float) -> str:
    return "without limit" if math.isinf(amount) else f"{amount:,.0f}"
