"""The measured speeds of this rank, and the plan that follows from them for the seconds that a notice leaves."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, Final, cast

from ..agreement import Act, Notice
from ..events import Committed, Event, EventBus, LastSecondsPlanned, PushFailing, SaveAbandoned, Staged, WrittenLocally
from ..format.manifest import Json
from .plan import Plan, Situation, plan_last_seconds, slowest

logger = logging.getLogger(__name__)

NUM_STEPS: Final = 16  # the slowest of so many is what a step takes


class Measurements:
    """
    Follows the events of its rank, and plans the last seconds from what saves lately took on the slowest rank.

    :meth:`figures`, :meth:`merge` and :meth:`decide` are that part of :class:`~.agreement.decision.Participant`.

    Args:
        disk_survives: Whether the next attempt finds what is on the local disk.
        bus: Gets :class:`~.events.LastSecondsPlanned`.
    """

    def __init__(self, disk_survives: bool, bus: EventBus) -> None:
        self._disk_survives = disk_survives
        self._bus = bus
        self._lock = threading.Lock()
        self._step_ends: deque[float] = deque(maxlen=NUM_STEPS + 1)
        self._saved = 0
        self._saved_since_notice = False
        self._in_flight: dict[int, float] = {}  # steps, and when they were in memory
        self._is_failing = False
        self._staged: Staged | None = None
        self._disk_bytes_per_s: float | None = None
        self._store_bytes_per_s: float | None = None
        self._commit_s = 0.0
        self._others: Situation | None = None
        self._merged_at = 0.0
        self._emitted: tuple[str, bool] | None = None

    def on_step(self) -> None:
        """Take the time of a step that is done. On the training thread."""
        self._step_ends.append(time.monotonic())

    def on_pause(self) -> None:
        """Forget the times of steps, because the time of a pause is not the time of a step."""
        self._step_ends.clear()

    def on_saved(self, step: int, *, because_of_notice: bool = False) -> None:
        """Take *step* as the newest that is being saved, or was resumed from."""
        with self._lock:
            self._saved = step
            self._saved_since_notice |= because_of_notice

    def on_event(self, event: Event) -> None:
        """Take the speeds that *event* tells. Callable from any thread."""
        with self._lock:
            match event:
                case Staged(step=step, trigger=trigger):
                    self._staged = event
                    if trigger != "pause":  # that one is only held, until there is a notice
                        self._in_flight[step] = time.monotonic()
                case WrittenLocally(write_bytes_per_s=speed):
                    self._disk_bytes_per_s = speed
                case Committed(step=step, num_bytes=num_bytes, push_s=push_s, put_bytes_per_s=speed):
                    if speed and not self._is_failing and len(self._in_flight) == 1:  # else it waited for others
                        moved_s = num_bytes / speed + num_bytes / (self._disk_bytes_per_s or math.inf)
                        self._commit_s = max(0.0, push_s - moved_s)
                    self._store_bytes_per_s = speed
                    self._is_failing = False
                    self._in_flight.pop(step, None)
                case SaveAbandoned(step=step):
                    self._in_flight.pop(step, None)
                case PushFailing():
                    self._is_failing = True

    def figures(self) -> Json:
        """See :class:`~.agreement.decision.Participant`."""
        return asdict(self._situation(0, 0.0))

    def merge(self, figures: Sequence[Json]) -> None:
        """See :class:`~.agreement.decision.Participant`."""
        self._others = slowest([Situation(**cast("dict[str, Any]", each)) for each in figures])
        self._merged_at = time.monotonic()

    def decide(self, step: int, notice: Notice, num_ahead: int) -> Act:
        """See :class:`~.agreement.decision.Participant`."""
        now = self._of_all(self._situation(step, _left_s(notice)))
        plan = plan_last_seconds(now)
        if plan.choice != "train_on" or plan.num_steps <= num_ahead:
            return "leave"
        self._emit_plan(step, plan, now)
        return "save" if plan.save_first else "train"

    def announce(self, step: int, notice: Notice) -> None:
        """Emit the plan for leaving with *step*."""
        now = replace(self._situation(step, _left_s(notice)), step_s=None)  # there will be no other step
        self._emit_plan(step, plan_last_seconds(now), now)

    def _situation(self, step: int, left_s: float) -> Situation:
        """Return the situation of this rank after *step*."""
        with self._lock:
            staged = self._staged
            situation = Situation(
                left_s=left_s,
                step_s=max((after - before for before, after in pairwise(tuple(self._step_ends))), default=None),
                num_bytes=None if staged is None else staged.num_bytes,
                stall_s=0.0 if staged is None else staged.stall_s,
                stage_bytes_per_s=None if staged is None else staged.num_bytes / max(staged.copy_s, 1e-9),
                disk_bytes_per_s=self._disk_bytes_per_s,
                store_bytes_per_s=self._store_bytes_per_s,
                commit_s=self._commit_s,
                disk_survives=self._disk_survives,
                in_flight_s=0.0,
                num_unsaved_steps=max(0, step - self._saved),
                saved_since_notice=self._saved_since_notice,
            )
        return replace(situation, in_flight_s=self._in_flight_s(situation))

    def _in_flight_s(self, by: Situation) -> float:
        """
        Estimate the seconds until every push in flight finishes, by the speeds of *by*.

        A push that is already overdue is expected to take as long again as it is late.
        """
        end = 0.0
        with self._lock:
            if not self._in_flight:
                return 0.0
            for staged_at in self._in_flight.values():
                end = max(end, staged_at) + by.push_s
            return math.inf if self._is_failing else abs(end - time.monotonic())

    def _of_all(self, own: Situation) -> Situation:
        """Return *own* merged with the figures of the other ranks, whose pushes have continued since."""
        if (others := self._others) is None:
            return own
        others = replace(
            others,
            left_s=own.left_s,
            in_flight_s=max(0.0, others.in_flight_s - (time.monotonic() - self._merged_at)),
            num_unsaved_steps=own.num_unsaved_steps,
            saved_since_notice=own.saved_since_notice,
        )
        together = slowest([own, others])
        return replace(together, in_flight_s=max(others.in_flight_s, self._in_flight_s(together)))

    def _emit_plan(self, step: int, plan: Plan, now: Situation) -> None:
        if self._emitted == (plan.choice, plan.save_first):
            return
        self._emitted = (plan.choice, plan.save_first)
        logger.info(
            "step %s, %.1f s left: %s%s, %s steps fit, the last save needs %s s",
            step,
            now.left_s,
            plan.choice,
            " after a first save" if plan.save_first else "",
            plan.num_steps,
            "an unknown number of" if plan.needs_s is None else f"{plan.needs_s:.1f}",
        )
        self._bus.emit(
            LastSecondsPlanned(
                step=step,
                **asdict(plan),
                step_s=now.step_s,
                num_bytes=now.num_bytes,
                stage_bytes_per_s=now.stage_bytes_per_s,
                disk_bytes_per_s=now.disk_bytes_per_s,
                store_bytes_per_s=now.store_bytes_per_s,
                in_flight_s=now.in_flight_s,
            )
        )


def _left_s(notice: Notice) -> float:
    return notice.deadline - notice.margin_s - time.monotonic()
