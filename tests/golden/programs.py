"""
The trainings whose checkpoints lie in ``data/``.

Each of them can be run in three ways: without any checkpoint, from the beginning until a step is stored, and from a
stored step to the end.
"""

from __future__ import annotations

from collections.abc import Callable

from golden.bare import bare, two_ranks
from golden.hosts import accelerate, lightning, two_processes
from golden.training import STORED, Record

PROGRAMS: dict[str, Callable[[str | None, bool], list[list[Record]]]] = {
    "bare": lambda url, stop: [bare(url, stop, has_values=True)],
    "two-ranks": two_ranks,
    "frozen": lambda url, stop: [bare(url, stop, has_frozen=True, stored=(4, STORED))],
    "lightning": lambda url, stop: [lightning(url, stop)],
    "lightning-ddp": lambda url, stop: two_processes("lightning", url, stop),
    "accelerate": lambda url, stop: [accelerate(url, stop)],
    "accelerate-ddp": lambda url, stop: two_processes("accelerate", url, stop),
}
"""
The trainings by the names of their folders in ``data/``. Called with the run's URL, or None for no checkpoints, and
with True to stop when step :data:`STORED` is stored. They return the records of every rank.
"""
