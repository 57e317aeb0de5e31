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
from ..events import (
    Committed,
    Event,
    EventBus,
    LastSecondsPlanned,
    LocalWriteFailed,
    PushFailing,
    SaveAbandoned,
    Staged,
    WrittenLocally,
)
from ..ranks import Json
from .plan import ESTIMATED_S, Plan, Situation, plan_last_seconds, slowest
from .run_ahead import RunAhead
from .save_speeds import InFlight, SaveSpeeds

logger = logging.getLogger(__name__)

NUM_STEPS: Final = 16  # number of recent steps, of which the slowest counts


class Measurements:
    """
    Measures the saves and steps of its rank, and plans the last seconds by the speeds of the slowest rank.

    :meth:`figures`, :meth:`merge` and :meth:`decide` implement methods of :class:`~.agreement.decision.Participant`.
    Events arrive on any thread. Steps arrive on the training thread.

    Args:
        disk_survives: Whether the next attempt can read the local disk.
        bus: Gets :class:`~.events.LastSecondsPlanned`.
        put_bytes_per_s: An estimate for the speed of the store, which counts until a save is measured.
    """

    def __init__(self, disk_survives: bool, bus: EventBus, put_bytes_per_s: float | None = None) -> None:
        self._disk_survives = disk_survives
        self._bus = bus
        self._lock = threading.Lock()
        self._step_ends: deque[float] = deque(maxlen=NUM_STEPS + 1)
        self._saved = 0
        self._saved_since_notice = False
        self._speeds = SaveSpeeds(put_bytes_per_s)
        self._in_flight = InFlight()
        self._others: Situation | None = None
        self._merged_at = 0.0
        self._emitted: tuple[str, bool] | None = None
        self._run_ahead = RunAhead()

    def on_prepared(self, num_bytes: int) -> None:
        """Take *num_bytes* as an estimate for the size of a save. It counts until a save is measured."""
        with self._lock:
            self._speeds.num_bytes = num_bytes

    def on_step(self, notice: Notice | None = None) -> None:
        """
        Measure the step that has ended. Call it on the training thread.

        With a *notice* that leaves time, the device counts and not the host, which may be seconds ahead. The work that
        the device has left at the first such step belongs to no step.
        """
        leaves_time = notice is not None and not notice.at_once
        was_limited = self._run_ahead.is_limited
        if leaves_time and was_limited:
            self._run_ahead.limit()
        self._step_ends.append(time.monotonic())
        if leaves_time and not was_limited:
            self._run_ahead.limit()
            self.on_interlude()

    def on_interlude(self) -> None:
        """Leave out the time since the last step, because it belongs to no step."""
        if self._step_ends:
            passed = time.monotonic() - self._step_ends[-1]
            self._step_ends = deque((end + passed for end in self._step_ends), maxlen=NUM_STEPS + 1)

    def on_pause(self) -> None:
        """Forget the times of steps, because the time of a pause is not the time of a step."""
        self._step_ends.clear()

    def on_saved(self, step: int, *, because_of_notice: bool = False) -> None:
        """Remember *step* as the newest one that is being saved or was resumed from."""
        with self._lock:
            self._saved = step
            self._saved_since_notice |= because_of_notice

    def on_event(self, event: Event) -> None:
        """Measure the save that *event* is about. Callable from any thread."""
        with self._lock:
            match event:
                case Staged(step=step, trigger=trigger):
                    self._speeds.on_staged(event)
                    if trigger != "pause":  # the state of a pause is held, and pushed only after a notice
                        self._in_flight.add(step, time.monotonic())
                case WrittenLocally():
                    self._speeds.on_written(event)
                case LocalWriteFailed():
                    self._speeds.on_not_written()
                case Committed(step=step):
                    self._speeds.on_committed(event, was_alone=self._in_flight.is_steady)
                    self._in_flight.is_failing = False
                    self._in_flight.remove(step)
                case SaveAbandoned(step=step):
                    self._in_flight.remove(step)
                case PushFailing():
                    self._in_flight.is_failing = True

    @property
    def is_estimated(self) -> bool:
        """True if no save was measured yet."""
        with self._lock:
            return self._speeds.is_estimated

    @property
    def save_s(self) -> float | None:
        """
        Seconds that a save takes until the next attempt can read it, by the latest figures of this rank.

        It is in the store by then, or on a local disk that survives, if that is sooner. None as long as nothing was
        measured.
        """
        now = self._situation(0, 0.0)
        if now.is_estimated:
            return None
        is_read_there = now.disk_survives and now.disk_bytes_per_s is not None
        return now.stage_s + (min(now.push_s, now.disk_s) if is_read_there else now.push_s)

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
        fits = now.step_s is None or plan.num_steps > num_ahead + self._run_ahead.num_steps
        if plan.choice != "train_on" or not fits:
            if now.is_estimated and not now.saved_since_notice:
                self._warn_of_estimate(step, now)
            return "leave"
        self._emit_plan(step, plan, now)
        return "save" if plan.save_first else "train"

    def announce(self, step: int, notice: Notice) -> None:
        """Emit the plan for leaving with *step*."""
        now = self._situation(step, _left_s(notice))
        self._emit_plan(step, plan_last_seconds(now, ends=True), now)

    def _situation(self, step: int, left_s: float) -> Situation:
        """Return the situation of this rank after *step*."""
        with self._lock:
            situation = Situation(
                left_s=left_s,
                step_s=max((after - before for before, after in pairwise(tuple(self._step_ends))), default=None),
                **self._speeds.fields(),
                disk_survives=self._disk_survives,
                in_flight_s=0.0,
                num_unsaved_steps=max(0, step - self._saved),
                saved_since_notice=self._saved_since_notice,
            )
        return replace(situation, in_flight_s=self._in_flight_s(situation))

    def _in_flight_s(self, by: Situation) -> float:
        """Estimate the seconds until every push in flight finishes, by the speeds of *by*."""
        with self._lock:
            return self._in_flight.seconds_left(by.push_s, time.monotonic())

    def _of_all(self, own: Situation) -> Situation:
        """Return *own* merged with the figures of the other ranks, whose pushes have continued since."""
        if (others := self._others) is None:
            return own
        others = replace(
            others,
            left_s=own.left_s,
            in_flight_s=max(0.0, others.in_flight_s - (time.monotonic() - self._merged_at)),
            step_s=others.step_s or own.step_s,  # a rank that had made one step did not know how long steps take
            num_unsaved_steps=own.num_unsaved_steps,
            saved_since_notice=own.saved_since_notice,
        )
        together = slowest([own, others])
        return replace(together, in_flight_s=max(others.in_flight_s, self._in_flight_s(together)))

    def _warn_of_estimate(self, step: int, now: Situation) -> None:
        needs_s = now.stage_s + now.push_s
        logger.warning(
            "no save was measured yet. By an estimate one takes %s, and %.0f s are left, so all leave after step %s. "
            "Training continues only if two saves fit into at least %.0f s, and none is in flight",
            f"{needs_s:.0f} s" if math.isfinite(needs_s) else "an unknown time",
            now.left_s,
            step,
            ESTIMATED_S,
        )

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
