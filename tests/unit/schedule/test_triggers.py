"""The times at which a periodic save is due. Time is a value here: nothing waits."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hearing import until_idle
from hypothesis import given
from hypothesis import strategies as st
from steps import Holder

from spot_plugins.clock import SystemClock
from spot_plugins.config import SpotConfig
from spot_plugins.events import Staged
from spot_plugins.schedule import PeriodicTrigger
from spot_plugins.session import SpotSession


class HandClock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def utc(self):
        return datetime(2030, 1, 1, tzinfo=timezone.utc)


def run(trigger, clock, *, seconds_per_step, num_steps, first=1):
    """Save whenever it is due. Return ``(step, why)`` of each save."""
    saves = []
    for step in range(first, first + num_steps):
        clock.now += seconds_per_step
        if due := trigger.due(step):
            saves.append((step, due))
            trigger.reset(step)
    return saves


@pytest.mark.parametrize(
    ("every_steps", "every_seconds", "expected"),
    [
        (4, None, [(4, "steps"), (8, "steps"), (12, "steps")]),
        (None, 5.0, [(5, "seconds"), (10, "seconds")]),
        (4, 5.0, [(4, "steps"), (8, "steps"), (12, "steps")]),
        (6, 5.0, [(5, "seconds"), (10, "seconds")]),
        (1, None, [(step, "steps") for step in range(1, 13)]),
        (None, 0.5, [(step, "seconds") for step in range(1, 13)]),
    ],
)
def test_whichever_comes_first(every_steps, every_seconds, expected):
    """
    With a second per step: the sooner of the two saves, and each save starts both counts again.
    """
    clock = HandClock()
    trigger = PeriodicTrigger(every_steps, every_seconds, clock)

    assert run(trigger, clock, seconds_per_step=1.0, num_steps=12) == expected


def test_each_kind_resets_the_other():
    """
    Steps that get faster and slower: five seconds after a save on steps, and four steps after one on seconds.
    """
    clock = HandClock()
    trigger = PeriodicTrigger(4, 5.0, clock)

    fast = run(trigger, clock, seconds_per_step=0.5, num_steps=6)
    slow = run(trigger, clock, seconds_per_step=2.0, num_steps=5, first=7)
    fast_again = run(trigger, clock, seconds_per_step=0.5, num_steps=6, first=12)

    assert fast == [(4, "steps")]  # 2 s; one more second passes until step 6
    assert slow == [(8, "steps"), (11, "seconds")]  # the six seconds count from step 8
    assert fast_again == [(15, "steps")]  # four steps behind 11


@given(steps=st.none() | st.integers(1, 9), seconds=st.none() | st.floats(0.5, 9), paces=st.lists(st.floats(0, 4)))
def test_never_longer_than_either_without_a_save(steps, seconds, paces):
    """
    Whatever the pace: a save is due exactly when so many steps, or so many seconds, have passed since the last one.
    """
    clock = HandClock()
    trigger = PeriodicTrigger(steps, seconds, clock)
    last_step, last_at = 0, clock.now
    for step, pace in enumerate(paces, start=1):
        clock.now += pace
        on_steps = steps is not None and step - last_step >= steps
        on_seconds = seconds is not None and clock.now - last_at >= seconds

        assert trigger.due(step) == ("steps" if on_steps else "seconds" if on_seconds else None)
        assert trigger.steps_left(step) == (float("inf") if steps is None else last_step + steps - step)
        if on_steps or on_seconds:
            trigger.reset(step)
            last_step, last_at = step, clock.now


def test_a_session_saves_on_both_and_an_explicit_save_resets_them(tmp_path):
    """
    Through the whole session: steps and seconds both fire, whichever comes first, and any save starts both again.
    """
    clock = HandClock()
    staged = []
    session = SpotSession(
        SpotConfig(url=str(tmp_path), every_steps=4, every_seconds=60.0),
        clock=clock,
        on_event=[lambda event: staged.append((event.step, event.trigger)) if isinstance(event, Staged) else None],
    )
    session.register("part", Holder({"x": 1}))
    session.resume()

    def train(first, last, seconds_per_step):
        for step in range(first, last + 1):
            clock.now += seconds_per_step
            session.after_step(step)
            until_idle(session)

    train(1, 5, seconds_per_step=1.0)
    train(6, 7, seconds_per_step=40.0)
    session.save(8)
    until_idle(session)
    train(9, 11, seconds_per_step=1.0)
    clock.now += 57.0
    train(12, 12, seconds_per_step=0.0)
    clock.now += 59.0
    train(13, 13, seconds_per_step=0.0)
    train(14, 14, seconds_per_step=1.0)
    session.close()

    assert staged == [(4, "steps"), (7, "seconds"), (8, "explicit"), (12, "steps"), (14, "seconds")]


def test_the_system_clock_only_grows_and_knows_utc():
    """
    The clock that trainings use.
    """
    clock = SystemClock()

    assert clock.monotonic() <= clock.monotonic()
    assert clock.utc().tzinfo is timezone.utc


def test_a_hastened_save_is_due_until_something_new_is_saved():
    """
    Whatever the intervals say. That a run begins, or that a step is saved again, does not count.
    """
    trigger = PeriodicTrigger(1000, None, HandClock())
    trigger.hasten()
    trigger.reset(0)
    assert trigger.due(1) == "soft"

    trigger.reset(1)
    assert trigger.due(2) is None
