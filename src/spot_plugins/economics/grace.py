"""The bytes that fit into the grace period, and the number of machines that a checkpoint needs to fit."""

from __future__ import annotations

import math


def bytes_in_grace(grace_s: float, reaction_s: float, bytes_per_s: float) -> float:
    """
    Compute the bytes that one machine can store between the notice and its end.

    Only a machine that is taken has a deadline. Each machine stores its own share of a checkpoint, so this limits the
    share and not the checkpoint.

    Args:
        grace_s: Seconds from the notice to the end of the machine, at least 0.
        reaction_s: Seconds from the notice to the first byte: the poll, the end of the step and the copy, at least 0.
        bytes_per_s: Speed of one machine, above 0.

    Returns:
        0 if the grace is not longer than the reaction.

    Raises:
        ValueError: An argument is out of range.
    """
    for name, value in (("grace_s", grace_s), ("reaction_s", reaction_s)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be at least 0 and finite")
    if not 0 < bytes_per_s < math.inf:
        raise ValueError(f"bytes_per_s={bytes_per_s} must be above 0 and finite")
    return max(0.0, grace_s - reaction_s) * bytes_per_s


def nodes_to_fit(num_bytes: float, grace_s: float, reaction_s: float, bytes_per_s: float) -> int | None:
    """
    Compute the least number of machines on which a checkpoint of *num_bytes* can be stored within the grace.

    Returns:
        None if no number is enough, because nothing fits.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < num_bytes < math.inf:
        raise ValueError(f"num_bytes={num_bytes} must be above 0 and finite")
    fits = bytes_in_grace(grace_s, reaction_s, bytes_per_s)
    return math.ceil(num_bytes / fits) if fits else None
