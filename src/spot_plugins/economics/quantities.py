"""Numbers as people write them in options: ``7B`` parameters, ``80GB``, ``8%``."""

from __future__ import annotations

import math
import re
from typing import Final

from ..errors import ConfigError

_NUMBER: Final = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*", re.ASCII)
_COUNTS: Final = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_BYTES: Final = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
    "KIB": 2.0**10,
    "MIB": 2.0**20,
    "GIB": 2.0**30,
    "TIB": 2.0**40,
}


def parameters(name: str, text: str) -> float:
    """
    Return the number that *text* names, such as ``7B`` or ``350M``.

    Raises:
        ConfigError: *text* names no number above 0.
    """
    return _scaled(name, text, _COUNTS, "7B, 350M or 7e9")


def num_bytes(name: str, text: str) -> float:
    """
    Return the bytes that *text* names, such as ``80GB`` or ``75GiB``.

    Raises:
        ConfigError: *text* names no number above 0.
    """
    return _scaled(name, text, _BYTES, "80GB, 75GiB or 80e9")


def share(name: str, text: str) -> float:
    """
    Return the probability that *text* names, such as ``8%`` or ``0.08``.

    Raises:
        ConfigError: *text* names no number of at least 0 and below 1.
    """
    found = _NUMBER.fullmatch(text)
    value = math.nan if found is None else _scale(found, {"": 1.0, "%": 0.01})
    if not 0 <= value < 1:
        raise ConfigError(
            f"{name}={text!r} is no share of the machines: write it as 8% or 0.08, below 100%. If a machine is taken "
            f"more than once in the time, give preemptions and machine_hours"
        )
    return value


def _scaled(name: str, text: str, units: dict[str, float], examples: str) -> float:
    found = _NUMBER.fullmatch(text)
    value = math.nan if found is None else _scale(found, units)
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={text!r} is no number above 0 with a known unit: write it as {examples}")
    return value


def _scale(found: re.Match[str], units: dict[str, float]) -> float:
    try:
        return float(found[1]) * units[found[2].upper()]
    except (ValueError, KeyError):
        return math.nan
