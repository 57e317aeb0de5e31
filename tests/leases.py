"""Leases that a real fleet had, and ways to spend them."""

from __future__ import annotations

import csv
from pathlib import Path

from spot_plugins.economics import Lease

TRACES = Path(__file__).parent / "traces"


def leases_of(trace):
    """The leases of a real fleet, by the name of its file."""
    lines = (TRACES / f"{trace}.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    # GCP takes each machine after a day, like any other time.
    return [Lease(float(row["length_s"]), row["end_reason"] in ("preempted", "cap_24h")) for row in rows]


def p3_leases():
    """The leases of an AWS p3 fleet: 167 preemptions in 273 machine hours."""
    return leases_of("bamboo_aws_p3")


def save_at_once(remaining):
    """Stop and save when the notice comes."""
    return "wait" if remaining.saved_since_notice else "save"


def save_late(needs_s):
    """Train on until no more than *needs_s* are left."""

    def act(remaining):
        if remaining.saved_since_notice:
            return "wait"
        return "train" if remaining.left_s >= needs_s + 1.0 else "save"

    return act
