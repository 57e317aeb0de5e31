"""
What to do with the last seconds of a machine. Values in, a value out; asked at every end of a step after a notice.

The machine that is planned for: training stands still while the last save is staged; each save is then written to
the local disk, if there is one, and put to the store; pushes follow one another, none is called back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

MARGIN: Final = 0.1
"""Everything is planned to take this much longer than it lately did."""

Choice: TypeAlias = Literal["train_on", "save", "save_locally", "finish_push", "nothing_fits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A rank at the end of a step. Speeds are those lately measured; None where nothing was."""

    left_s: float
    """Seconds until everything must be stored. What leaving takes is subtracted already."""
    step_s: float | None
    """Seconds of one optimizer step, rather too many than too few."""
    num_bytes: int | None
    """Size of one save; None before the first one."""
    stall_s: float
    """Seconds that training stands still for a save that is copied while it goes on."""
    stage_bytes_per_s: float | None
    disk_bytes_per_s: float | None
    """None also if there is no local disk to write to."""
    store_bytes_per_s: float | None
    commit_s: float
    """Seconds that a step takes to be committed beside its bytes."""
    disk_survives: bool
    """Whether what is on the local disk can be read after the deadline."""
    in_flight_s: float
    """Seconds until earlier saves are committed; 0 if they are, infinity where nobody knows."""
    num_unsaved_steps: int
    """Steps trained since the newest that is stored or in flight."""
    saved_since_notice: bool
    """Whether that one was staged after the notice."""

    @property
    def stage_s(self) -> float:
        """Seconds to copy one save to memory; infinity where nobody knows."""
        return _seconds(self.num_bytes, self.stage_bytes_per_s)

    @property
    def disk_s(self) -> float:
        """Seconds to write one save to the local disk, if there is one."""
        return 0.0 if self.disk_bytes_per_s is None else _seconds(self.num_bytes, self.disk_bytes_per_s)

    @property
    def push_s(self) -> float:
        """Seconds from a save in memory to its commit; infinity where nobody knows."""
        return self.disk_s + _seconds(self.num_bytes, self.store_bytes_per_s) + self.commit_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What saves most, and the numbers that say so."""

    choice: Choice
    """
    - ``train_on``: do one more step and ask again;
    - ``save``: stage this step now and push it, then wait;
    - ``save_locally``: the same; only the local disk will have it in time, and that survives;
    - ``finish_push``: wait for what is in flight; a save behind it may be tried, and is not promised;
    - ``nothing_fits``: by what was measured nothing will be in time. A save may be tried, and is not promised.
    """
    is_promised: bool
    """Whether it fits with the margin. Not so before the speeds are known."""
    needs_s: float | None
    """Seconds until the promise is kept, by what was measured and without the margin; None without a promise."""
    left_s: float
    num_steps: int = 0
    """Steps that fit before the last save."""
    save_first: bool = False
    """Whether to save this step as well before training on, for the case that the notice was too optimistic."""


def slowest(ranks: Sequence[Situation]) -> Situation:
    """
    Return the situation of a job whose *ranks* must all be in time: in each field that of the worst of them.

    Raises:
        ValueError: There is no rank.
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
    )


def plan_last_seconds(now: Situation) -> Plan:
    """
    Choose what loses least.

    A step in the store is worth more than a newer one on a disk, and any new one more than that in flight.
    A first save, beside the late one, is made where it costs at most one step and is stored before the late one.
    """
    allowed_s = now.left_s / (1 + MARGIN)
    stage_s = now.stage_s
    ways: list[tuple[Choice, float]] = [("save", now.push_s)]
    if now.disk_survives and now.disk_bytes_per_s is not None:
        ways.append(("save_locally", now.disk_s))
    for choice, write_s in ways:
        if max(stage_s, now.in_flight_s) + write_s > allowed_s:
            continue
        num_steps = _steps_within(allowed_s - stage_s - write_s, now.step_s)
        if num_steps >= 1:
            assert now.step_s is not None
            trained_s = num_steps * now.step_s
            first = choice == "save" and _is_worth_a_first_save(now, trained_s)
            needs_s = max(trained_s + stage_s, now.in_flight_s) + write_s
            return _promise("train_on", needs_s, now, num_steps, save_first=first)
        if now.num_unsaved_steps:
            return _promise(choice, max(stage_s, now.in_flight_s) + write_s, now)
    if now.in_flight_s <= max(allowed_s, 0.0) and (now.in_flight_s or not now.num_unsaved_steps):
        return _promise("finish_push", now.in_flight_s, now)
    is_unknown = math.isinf(stage_s + now.push_s)
    choice = "save" if is_unknown and now.num_unsaved_steps and now.left_s > 0 else "nothing_fits"
    return Plan(choice=choice, is_promised=False, needs_s=None, left_s=now.left_s)


def _is_worth_a_first_save(now: Situation, trained_s: float) -> bool:
    """Whether a save now costs no more than a step, and is stored a step before the late one begins."""
    assert now.step_s is not None
    is_needed = not now.saved_since_notice and not now.in_flight_s and now.num_unsaved_steps > 0
    return is_needed and now.stall_s <= now.step_s and now.stage_s + now.push_s <= trained_s - now.step_s


def _promise(choice: Choice, needs_s: float, now: Situation, num_steps: int = 0, *, save_first: bool = False) -> Plan:
    return Plan(
        choice=choice,
        is_promised=True,
        needs_s=needs_s,
        left_s=now.left_s,
        num_steps=num_steps,
        save_first=save_first,
    )


def _seconds(num_bytes: int | None, bytes_per_s: float | None) -> float:
    """How long so many bytes take; infinitely long where nobody knows."""
    if num_bytes == 0:
        return 0.0
    return num_bytes / bytes_per_s if num_bytes and bytes_per_s else math.inf


def _least(speeds: Sequence[float | None]) -> float | None:
    """Return the lowest of *speeds*, None if one is not known."""
    known = [speed for speed in speeds if speed is not None]
    return min(known) if len(known) == len(speeds) else None


def _steps_within(seconds: float, step_s: float | None) -> int:
    return max(0, math.floor(seconds / step_s)) if step_s else 0
