"""Checks of arguments that several verbs share."""

from __future__ import annotations

import math

import typer


def seconds(value: float | None) -> float | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if it is not a finite number of seconds above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value} must be a number of seconds above 0")
    return value


def price(value: float | None) -> float | None:
    """Return *value*. Raise :exc:`typer.BadParameter` if it is not a finite price."""
    if value is not None and not (value >= 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value} must be a price of one GPU for one hour, 0 or more")
    return value
