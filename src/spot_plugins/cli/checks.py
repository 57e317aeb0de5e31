"""What several verbs refuse."""

from __future__ import annotations

import math

import typer


def seconds(value: float | None) -> float | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if it is no number of seconds."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value} must be a number of seconds above 0")
    return value
