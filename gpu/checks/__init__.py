"""
The checks, in the order in which they run.

A check is a function ``(settings, report)`` in a module of this package. The checks that only find out right or wrong
run side by side. Those that measure run alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """One process of the run."""

    number: int
    """Number in the table. Several checks may have the same."""
    name: str
    function: str
    """``module:function`` in this package."""
    limit_s: float
    is_alone: bool = False
    """True if other processes would change its figures."""
    arguments: dict[str, Any] = field(default_factory=dict)


CHECKS = (
    Check(number=1, name="environment", function="environment:run", limit_s=40, is_alone=True),
    Check(number=3, name="register twice", function="pinning:twice", limit_s=45),
    Check(number=4, name="one copy, two registrations", function="pinning:across", limit_s=45),
    Check(number=6, name="change without a fence", function="torn:run", limit_s=60),
    Check(number=7, name="no hidden waits", function="waits:run", limit_s=75),
    Check(number=13, name="faults after a staged step", function="faults:run", limit_s=100),
    Check(number=5, name="pytest -m gpu", function="suite:run", limit_s=100),
    Check(number=11, name="memory and dropout", function="returned:run", limit_s=60),
    Check(number=12, name="compiled", function="compiled:exact", limit_s=110),
    Check(number=12, name="capture during a copy", function="compiled:capture", limit_s=60),
    Check(number=13, name="two ranks, one notice", function="faults:two_ranks", limit_s=75),
    Check(number=10, name="state of 10 GB", function="large:run", limit_s=110, is_alone=True, arguments={"num_gb": 10}),
    Check(number=2, name="host memory", function="memory:run", limit_s=75, is_alone=True),
    Check(number=9, name="resume to the device", function="resumed:run", limit_s=60, is_alone=True),
    Check(number=8, name="frozen 8B and LoRA", function="lora:run", limit_s=100, is_alone=True),
    Check(number=10, name="state of 40 GB", function="large:run", limit_s=110, is_alone=True, arguments={"num_gb": 40}),
    Check(number=14, name="overhead of a step", function="beside:overhead", limit_s=40, is_alone=True),
    Check(number=14, name="peers at 10 GB", function="beside:peers", limit_s=110, is_alone=True),
)
