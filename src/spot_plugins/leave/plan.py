"""
The plan for the last seconds of a machine, as a pure function that is called after each step once there is a notice.

The plan assumes three things:

- Training stands still while the last save is staged.
- Each save is put to the store, and beside that written to the local disk, if there is one.
- Pushes follow one another, and none is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

MARGIN: Final = 0.1
"""Share that is added to every measured duration."""

ESTIMATED_S: Final = 60.0
"""Fewest seconds that training continues for, if no save was measured yet. For fewer an estimate is not worth it."""

Choice: TypeAlias = Literal["train_on", "save", "save_locally", "finish_push", "nothing_fits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """The state of a rank after a step. Speeds are the latest measured ones, or estimates. None if there are none."""

    left_s: float
    """Seconds until everything must be stored. The time for leaving is already subtracted."""
    step_s: float | None
    """Seconds of one optimizer step, estimated high."""
    num_bytes: int | None
    """Bytes of one save. None before the first one."""
    stall_s: float
    """Seconds that training stands still for a save whose copy runs beside training."""
    stage_bytes_per_s: float | None
    disk_bytes_per_s: float | None
    """None also if there is no local disk."""
    store_bytes_per_s: float | None
    commit_s: float
    """Seconds of a push that do not depend on its bytes."""
    disk_survives: bool
    """True if the next attempt can read the local disk after the deadline."""
    in_flight_s: float
    """Seconds until earlier saves are committed. 0 if they are, infinity if that is unknown."""
    num_unsaved_steps: int
    """Number of steps trained after the newest save that is stored or in flight."""
    saved_since_notice: bool
    """True if the newest save was staged after the notice."""
    is_estimated: bool = False
    """True if no save was measured yet, so that size or speeds are estimates."""

    @property
    def is_worth_an_estimate(self) -> bool:
        """
        True if a first save and a last one fit by estimates.

        An earlier save that is in flight does not count, because another rank may never store its share of it.
        """
        if not self.num_unsaved_steps or self.in_flight_s or self.left_s < ESTIMATED_S:
            return False
        return 2 * (self.stage_s + self.push_s) * (1 + MARGIN) <= self.left_s

    @property
    def stage_s(self) -> float:
        """Seconds to copy one save to host memory. Infinity if that is unknown."""
        return _seconds(self.num_bytes, self.stage_bytes_per_s)

    @property
    def disk_s(self) -> float:
        """Seconds to write one save to the local disk. 0 without a local disk."""
        return 0.0 if self.disk_bytes_per_s is None else _seconds(self.num_bytes, self.disk_bytes_per_s)

    @property
    def push_s(self) -> float:
        """Seconds from a save in host memory to its commit. Infinity if that is unknown."""
        return _seconds(self.num_bytes, self.store_bytes_per_s) + self.commit_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The choice that loses least, and the numbers for it."""

    choice: Choice
    """
    - ``train_on``: train one more step and plan again.
    - ``save``: stage this step now, push it and wait.
    - ``save_locally``: the same, but only the local disk will have the step in time. The local disk survives.
    - ``finish_push``: wait for the pushes in flight. Another save may be tried after them, without a promise.
    - ``nothing_fits``: by the speeds, nothing will be in time. A save may be tried, without a promise.
    """
    is_promised: bool
    """True if the choice fits with the margin, by speeds that were measured."""
    needs_s: float | None
    """Seconds until the last save is stored, without the margin. None if nothing fits."""
    left_s: float
    num_steps: int = 0
    """Number of steps that fit before the last save. 1 if the time of a step is unknown."""
    save_first: bool = False
    """True if this step is to be saved too before training continues, in case the machine is taken early."""


def slowest(ranks: Sequence[Situation]) -> Situation:
    """
    Return the situation of a job whose *ranks* must all be in time. Each field is that of the worst rank.

    Raises:
        ValueError: *ranks* is empty.
    """
    steps = [each.step_s for each in ranks]
    sizes = [each.num_bytes for each in ranks]
    disks = [each.disk_bytes_per_s for each in ranks if each.disk_bytes_per_s is not None]
    return Situation(
        left_s=min(each.left_s for each in ranks),
        step_s=None if None in steps else max(filter(None, steps), default=None),
        num_bytes=None if None in sizes else max(filter(None, sizes), default=0),
        stall_s=max(each.stall_s for each in ranks),
        stage_bytes_per_s=_least([each.stage_bytes_per_s for each in ranks]),
        disk_bytes_per_s=min(disks, default=None),
        store_bytes_per_s=_least([each.store_bytes_per_s for each in ranks]),
        commit_s=max(each.commit_s for each in ranks),
        disk_survives=all(each.disk_survives and each.disk_bytes_per_s is not None for each in ranks),
        in_flight_s=max(each.in_flight_s for each in ranks),
        num_unsaved_steps=max(each.num_unsaved_steps for each in ranks),
        saved_since_notice=all(each.saved_since_notice for each in ranks),
        is_estimated=any(each.is_estimated for each in ranks),
    )


def plan_last_seconds(now: Situation, *, ends: bool = False) -> Plan:
    """
    Choose what loses least.

    A step in the store is worth more than a newer step on the local disk. A new step is worth more than the one in
    flight. If there is time for more steps, this step is saved first as well, provided that the save costs at most one
    step and is stored before the last save begins.

    Before a save is measured, training continues only after a first save since the notice.

    Args:
        now: The state after a step.
        ends: Whether no further step is trained, whatever time is left.
    """
    allowed_s = now.left_s / (1 + MARGIN)
    stage_s = now.stage_s
    is_first = now.is_estimated and not now.saved_since_notice
    ends = ends or (is_first and not now.is_worth_an_estimate)
    choices: list[tuple[Choice, float]] = [("save", now.push_s)]
    if now.disk_survives and now.disk_bytes_per_s is not None:
        choices.append(("save_locally", now.disk_s))
    for choice, write_s in choices:
        if max(stage_s, now.in_flight_s) + write_s > allowed_s:
            continue
        num_steps = 0 if ends else _steps_within(allowed_s - stage_s - write_s, now)
        if num_steps >= 1:
            trained_s = num_steps * (now.step_s or 0.0)
            first = is_first or (choice == "save" and _is_worth_a_first_save(now, trained_s))
            needs_s = max(trained_s + stage_s, now.in_flight_s) + write_s
            return _fitting("train_on", needs_s, now, num_steps, save_first=first)
        if now.num_unsaved_steps:
            return _fitting(choice, max(stage_s, now.in_flight_s) + write_s, now)
    if now.in_flight_s <= max(allowed_s, 0.0) and (now.in_flight_s or not now.num_unsaved_steps):
        return _fitting("finish_push", now.in_flight_s, now)
    is_unknown = math.isinf(stage_s + now.push_s)
    choice = "save" if is_unknown and now.num_unsaved_steps and now.left_s > 0 else "nothing_fits"
    return Plan(choice=choice, is_promised=False, needs_s=None, left_s=now.left_s)


def _is_worth_a_first_save(now: Situation, trained_s: float) -> bool:
    """Return True if a save now costs at most one step, and is stored one step before the last save begins."""
    assert now.step_s is not None
    is_needed = not now.saved_since_notice and not now.in_flight_s and now.num_unsaved_steps > 0
    return is_needed and now.stall_s <= now.step_s and now.stage_s + now.push_s <= trained_s - now.step_s


def _fitting(choice: Choice, needs_s: float, now: Situation, num_steps: int = 0, *, save_first: bool = False) -> Plan:
    return Plan(
        choice=choice,
        is_promised=not now.is_estimated,
        needs_s=needs_s,
        left_s=now.left_s,
        num_steps=num_steps,
        save_first=save_first,
    )


def _seconds(num_bytes: int | None, bytes_per_s: float | None) -> float:
    """Return the seconds that *num_bytes* take at *bytes_per_s*. Infinity if either is unknown."""
    if num_bytes == 0:
        return 0.0
    return num_bytes / bytes_per_s if num_bytes and bytes_per_s else math.inf


def _least(speeds: Sequence[float | None]) -> float | None:
    """Return the lowest of *speeds*, or None if one is unknown."""
    known = [speed for speed in speeds if speed is not None]
    return min(known) if len(known) == len(speeds) else None


def _steps_within(seconds: float, now: Situation) -> int:
    """Return the number of steps that fit into *seconds*. 1 beside estimates if the time of a step is unknown."""
    if now.step_s is None:
        return int(now.is_estimated)
    return max(0, math.floor(seconds / now.step_s))
