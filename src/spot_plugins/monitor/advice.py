"""Sentences on what to change, for the longest losses of time first."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Final

from .figures import Report

LEAST_SHARE: Final = 0.01
"""Smallest share of the paid time that is worth a sentence."""

_SENTENCES: Final = {
    "wasted": "Save more often, or give the training a notice: {share} of the paid time went into {lost} steps that "
    "were trained again, and a save came every {every}.",
    "startup": "Make the program start faster, with a ready image and cached packages: {time} went by before the "
    "session was open.",
    "prep": "Shorten what runs between the start of the session and the first step, such as the setup of data and "
    "compilation: it took {time}.",
    "restore": "Read the checkpoint faster, with spot_plugins.prefetch while the program starts or a store in the same "
    "region: it took {time}.",
    "save": "Save less often, or less: training stood still for {time} of saves.",
    "leave": "Make the last save smaller or the way to the store faster: leaving took {time}.",
    "waiting": "Get machines sooner, from several zones or types: {time} went by between attempts.",
}


def advice_of(report: Report) -> tuple[str, ...]:
    """Return one sentence for each loss that is worth one, the longest first."""
    losses = {name: report.seconds[name] for name in _SENTENCES if name in report.seconds}
    losses["waiting"] = report.waiting_s
    total_s = report.paid_s + report.waiting_s
    worth = [name for name, lost_s in losses.items() if lost_s > LEAST_SHARE * total_s]
    return tuple(_sentence(name, losses[name], report) for name in sorted(worth, key=lambda name: -losses[name]))


def shown_s(seconds: float) -> str:
    """Return a duration for people."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{1000 * seconds:.1f} ms"


def _sentence(name: str, lost_s: float, report: Report) -> str:
    times = [[at for at, _ in each.saves] for each in report.attempts]
    between = [after - before for saves in times for before, after in pairwise(saves)]
    return _SENTENCES[name].format(
        time=shown_s(lost_s),
        share=f"{lost_s / report.paid_s:.0%}" if report.paid_s else "0%",
        lost=report.lost_steps,
        every=shown_s(median(between)) if between else "unknown time",
    )
