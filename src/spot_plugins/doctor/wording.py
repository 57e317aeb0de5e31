"""Sizes, times and commands as the findings show them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def size(num_bytes: float) -> str:
    """Return *num_bytes* with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def seconds(value: float) -> str:
    """Return *value* in seconds, with a digit behind the point if it is small."""
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def quoted(command: Sequence[str]) -> str:
    """Return *command* as a shell reads it."""
    return " ".join(map(shlex.quote, command))
