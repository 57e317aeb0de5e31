"""A picture of the simulated runs of a plan. Imported only by those who ask for one, because it needs matplotlib."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from .planning import LATE, Plan, Wall


def draw(plan: Plan, wall: Wall, path: Path) -> None:
    """
    Draw the wall times of the simulated runs of *plan* as a histogram, into a PNG file.

    Raises:
        OSError: The file cannot be written.
    """
    ended = [hours for hours in wall.walls_h if math.isfinite(hours)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(ended, bins=60, color="#0969da")
    marks = [
        ("without preemptions", plan.inputs.train_hours, "#2da44e"),
        ("mean", wall.simulated_h, "#1b1f24"),
        (f"{LATE:.0%} end by then", wall.late_h, "#bf8700"),
        ("deadline", plan.inputs.deadline_hours, "#cf222e"),
    ]
    for name, hours, color in marks:
        if hours is not None and math.isfinite(hours):
            axes.axvline(hours, color=color, label=f"{name}: {hours:,.4g} h")
    source = "leases of the trace" if plan.inputs.leases else "random preemptions"
    never = "" if len(ended) == wall.num_runs else f", {wall.num_runs - len(ended):,} of which were given up"
    axes.set(title=f"{wall.num_runs:,} runs with {source}{never}", xlabel="wall time in hours", ylabel="runs")
    axes.legend()
    figure.savefig(path, dpi=110, format="png")
