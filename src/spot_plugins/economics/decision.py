"""The choice between spot, on-demand, and spot with a fall-back to on-demand, each with its reason in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Choice: TypeAlias = Literal["spot", "on-demand", "hybrid", "undecided"]
Next: TypeAlias = Literal["spot", "on-demand", "wait"]

MARGIN_H: Final = 1.0
"""Hours before the last moment for on-demand machines at which waiting ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A choice and its reason."""

    choice: Choice
    """
    - ``spot``: train on spot machines.
    - ``on-demand``: train on machines that are not taken away.
    - ``hybrid``: begin on spot, and fall back to on-demand as the reason says.
    - ``undecided``: the prices are missing.
    """
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NextDecision:
    """The machines for the next attempt of a run, and the reason."""

    choice: Next
    """``wait``: start later, because spot does not pay now and there is time."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prospect:
    """The figures that decide. Hours are wall time. None stands for a figure that is not known."""

    price_ratio: float | None
    """Price of spot divided by the price on demand."""
    goodput: float
    """Expected share of the time on spot that is kept training."""
    goodput_at_worst: float | None
    """The same at the upper limit of the rate."""
    break_even_per_day: float | None
    """Preemptions of the job per day at which spot costs as much as on-demand."""
    train_hours: float | None
    late_hours: float | None
    """Hours on spot that one run in twenty exceeds. Infinity if it never ends."""
    deadline_hours: float | None


def decide(now: Prospect) -> Decision:
    """Choose by cost, then by the deadline, then by how well the rate is known."""
    if now.price_ratio is None:
        return Decision(
            choice="undecided",
            reason=f"without prices only this is known: spot is cheaper if an hour of it costs less than "
            f"{now.goodput:.1%} of an hour on demand",
        )
    if now.goodput <= now.price_ratio:
        return Decision(
            choice="on-demand",
            reason=f"{now.goodput:.0%} of the time on spot is kept training, but an hour costs {now.price_ratio:.0%} "
            f"of an hour on demand",
        )
    if now.deadline_hours is not None and now.train_hours is not None:
        if now.train_hours > now.deadline_hours:
            return Decision(
                choice="on-demand",
                reason=f"even without a preemption training takes {now.train_hours:,.4g} h, longer than the deadline "
                f"of {now.deadline_hours:,.4g} h",
            )
        if now.late_hours is not None and now.late_hours > now.deadline_hours:
            return Decision(
                choice="hybrid",
                reason=f"at least one run in twenty on spot alone misses the deadline of {now.deadline_hours:,.4g} h, "
                f"so go on-demand once the time left is what the rest of the training takes there",
            )
    if now.goodput_at_worst is not None and now.goodput_at_worst <= now.price_ratio:
        return Decision(
            choice="hybrid",
            reason=f"spot pays at the estimated rate but not at its upper limit, so go on-demand if the job is "
            f"preempted more than {now.break_even_per_day:.3g} times a day",
        )
    return Decision(
        choice="spot",
        reason=f"kept training on spot costs {now.price_ratio / now.goodput:.0%} of what it costs on demand",
    )


def decide_next(
    seen: str,
    low_per_day: float,
    break_even_per_day: float,
    train_hours: float | None,
    deadline_hours: float | None,
) -> NextDecision:
    """
    Choose the machines for the next attempt of a run, from its own preemptions.

    Spot is left only if the run is preempted too often beyond doubt: the lower limit of the rate is above the
    break-even. Then it waits while the deadline, if there is one, leaves time to train on demand later.

    Args:
        seen: The preemptions, in words.
        low_per_day: Lower limit of their rate.
        break_even_per_day: Preemptions per day above which on-demand is cheaper.
        train_hours: Hours of training that are left. None if unknown.
        deadline_hours: Hours until the training must have ended. None if there is no deadline.
    """
    slack_h = None if deadline_hours is None or train_hours is None else deadline_hours - train_hours
    if slack_h is not None and slack_h <= MARGIN_H:
        return NextDecision(
            choice="on-demand",
            reason=f"{slack_h:.3g} h are left beside the training itself, which is too little for another preemption",
        )
    if low_per_day <= break_even_per_day:
        return NextDecision(
            choice="spot",
            reason=f"{seen}, which is no proof of more than {break_even_per_day:.3g} a day, up to which spot pays",
        )
    return NextDecision(
        choice="wait",
        reason=f"{seen}, which is more than {break_even_per_day:.3g} a day, up to which spot pays, and "
        + ("there is no deadline" if slack_h is None else f"{slack_h:.3g} h can be spent waiting"),
    )
