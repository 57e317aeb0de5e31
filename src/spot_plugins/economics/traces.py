"""Preemption traces: leases, and the count of preemptions over machine hours, from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from .goodput import Lease

_TAKEN: Final = frozenset({"preempted", "cap_24h"})
"""Ends of a lease by the provider. The lifetime limit of a day counts as well."""
_KEPT: Final = frozenset({"stopped", "trace_end"})
"""Ends of a lease that say nothing about the provider."""

COLUMNS: Final = "start_s, end_s and end_reason; length_s and end_reason; or t_s, n_before and n_after"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The preemptions of a real fleet."""

    num_preemptions: int
    machine_hours: float
    leases: tuple[Lease, ...] = ()
    """One per machine. Empty if the file has only the size of the fleet."""


def read_trace(path: str) -> Trace:
    """
    Read a trace from a CSV file with a header. Lines that begin with ``#`` are skipped, and so are other columns.

    - Leases: ``start_s`` and ``end_s``, or ``length_s``, and ``end_reason``: preempted, cap_24h, stopped or trace_end.
    - Sizes of a fleet: ``t_s``, ``n_before`` and ``n_after`` of each change. Each machine less is a preemption, so the
      count is a lower limit. Fleets are told apart by ``trace_id``.

    Raises:
        ConfigError: The file cannot be read, or has other columns or values, or no machine time.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace={path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    columns = set(rows[0]) if rows else set()
    try:
        if columns >= {"t_s", "n_before", "n_after"}:
            trace = _counted(rows)
        elif "end_reason" in columns and (columns >= {"start_s", "end_s"} or "length_s" in columns):
            trace = _leased(_lease(row) for row in rows)
        else:
            raise ConfigError(f"trace={path!r} lacks columns: give a CSV file with {COLUMNS}")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trace={path!r} has a row that makes no sense: {error}. Correct or remove it") from error
    if not trace.machine_hours > 0:
        raise ConfigError(f"trace={path!r} has no machine time: give a file with at least one lease that is not empty")
    return trace


def _lease(row: Mapping[str, str]) -> Lease:
    length_s = float(row["length_s"]) if "length_s" in row else float(row["end_s"]) - float(row["start_s"])
    if not 0 <= length_s < math.inf:
        raise ValueError(f"a lease of {length_s} s")
    if (reason := row["end_reason"]) not in _TAKEN | _KEPT:
        raise ValueError(f"end_reason={reason}")
    return Lease(length_s, reason in _TAKEN)


def _leased(leases: Iterable[Lease]) -> Trace:
    found = tuple(leases)
    hours = sum(each.length_s for each in found) / 3600
    return Trace(num_preemptions=sum(each.is_preempted for each in found), machine_hours=hours, leases=found)


def _counted(rows: Iterable[Mapping[str, str]]) -> Trace:
    taken, machine_s = 0, 0.0
    last: dict[str, tuple[float, int]] = {}
    for at_s, before, after, fleet in _changes(rows):
        since_s, size = last.get(fleet, (at_s, after))
        if at_s < since_s:
            raise ValueError(f"t_s={at_s:g} is earlier than the row before")
        machine_s += (at_s - since_s) * size
        taken += max(0, before - after)
        last[fleet] = (at_s, after)
    return Trace(num_preemptions=taken, machine_hours=machine_s / 3600)


def _changes(rows: Iterable[Mapping[str, str]]) -> Iterator[tuple[float, int, int, str]]:
    for row in rows:
        at_s, after = float(row["t_s"]), int(row["n_after"])
        before = int(row["n_before"]) if row["n_before"] else after  # the first row of a fleet
        if not 0 <= at_s < math.inf or before < 0 or after < 0:
            raise ValueError(f"t_s={at_s:g}, n_before={before}, n_after={after}")
        yield at_s, before, after, row.get("trace_id", "")
