"""The best interval and the goodput of leases, against published values, closed forms and a real trace."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leases import p3_leases, save_at_once, save_late

from spot_plugins.economics import Lease, TrainingRun, replay
from spot_plugins.schedule import daly_interval_s

MINUTE, HOUR = 60.0, 3600.0

LORA_70B = TrainingRun(step_s=1.0, save_s=7.0, push_s=70.0, restart_s=120.0, every_s=600.0)
LORA_7B = replace(LORA_70B, save_s=0.6, push_s=6.0)


def expected_goodput(every_s, save_s, mean_s, restart_s):
    """Daly's own model, exactly: exponential leases, and a save that blocks until it is stored."""
    wall_per_work = mean_s / every_s * math.exp(restart_s / mean_s) * math.expm1((every_s + save_s) / mean_s)
    return 1 / wall_per_work


@pytest.mark.parametrize(("mean_h", "interval_min"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_published_intervals(mean_h, interval_min):
    """
    Daly's own examples: saves that take 5 minutes, and three rates of failure.
    """
    interval_s = daly_interval_s(5 * MINUTE, mean_h * HOUR)

    assert round(interval_s / MINUTE, 1 if interval_min < 10 else None) == interval_min


@given(stall_s=st.floats(0.01, 1000), mean_s=st.floats(60, 1e6))
def test_no_other_interval_wastes_noticeably_less(stall_s, mean_s):
    """
    Over all costs that are worth a save: within 0.5 % of the least wall time, by the exact formula.
    """
    if stall_s > mean_s / 5:
        return
    ours = expected_goodput(daly_interval_s(stall_s, mean_s), stall_s, mean_s, 0.0)
    best = max(
        expected_goodput(factor * math.sqrt(2 * stall_s * mean_s), stall_s, mean_s, 0.0)
        for factor in [0.4 + 0.02 * index for index in range(50)]
    )

    assert ours >= 0.995 * best


def test_the_ends_of_the_scale():
    """
    Saves that cost nothing are made all the time, without preemptions there are none, and one that costs more
    than two leases is made once per lease. What is no duration is refused.
    """
    assert daly_interval_s(0.0, HOUR) == 0.0
    assert daly_interval_s(5.0, math.inf) == math.inf
    assert daly_interval_s(2 * HOUR, HOUR) == HOUR
    with pytest.raises(ValueError, match="stall_s=-1"):
        daly_interval_s(-1.0, HOUR)
    with pytest.raises(ValueError, match="mean_s=0"):
        daly_interval_s(1.0, 0.0)


@pytest.mark.parametrize(
    ("every_s", "save_s", "mean_s", "restart_s"),
    [(600.0, 30.0, 7200.0, 120.0), (300.0, 5.0, 3600.0, 300.0), (1800.0, 60.0, 6 * HOUR, 600.0)],
)
def test_a_replay_of_random_leases_agrees_with_the_closed_form(every_s, save_s, mean_s, restart_s):
    """
    With saves that block and leases that end at random, the simulator finds what Daly's formula says.
    """
    draw = random.Random(7)
    run = TrainingRun(step_s=every_s, save_s=save_s, push_s=0.0, restart_s=restart_s, every_s=every_s)

    found = replay(run, [Lease(draw.expovariate(1 / mean_s)) for _ in range(40_000)])

    assert found.goodput == pytest.approx(expected_goodput(every_s, save_s, mean_s, restart_s), rel=0.01)


@pytest.mark.parametrize(
    ("run", "every_min", "goodput"),
    [
        (LORA_70B, 60, 0.683),
        (LORA_70B, 30, 0.822),
        (LORA_70B, 10, 0.910),
        (LORA_70B, 5, 0.917),
        (LORA_7B, 10, 0.926),
    ],
)
def test_a_replay_of_the_trace_without_notices(run, every_min, goodput):
    """
    The reference values of an independent simulator, for several intervals.
    """
    found = replay(replace(run, every_s=every_min * MINUTE), p3_leases())

    assert found.goodput == pytest.approx(goodput, abs=0.0015)


@pytest.mark.parametrize(
    ("run", "notice_s", "at_notice", "goodput"),
    [
        (LORA_70B, 120.0, save_at_once, 0.948),
        (LORA_70B, 120.0, save_late(77.0), 0.954),
        (LORA_7B, 30.0, save_late(6.6), 0.974),
        (LORA_7B, 120.0, save_at_once, 0.958),
        (LORA_7B, 120.0, save_late(6.6), 0.976),
    ],
)
def test_a_replay_of_the_trace_with_notices(run, notice_s, at_notice, goodput):
    """
    The same with notices: who stops at once on a long one loses what who trains on and saves late keeps.
    """
    found = replay(replace(run, notice_s=notice_s, at_notice=at_notice), p3_leases())

    assert found.goodput == pytest.approx(goodput, abs=0.0025)


SMALL = TrainingRun(step_s=1.0, save_s=1.0, push_s=3.0, restart_s=10.0, every_s=5.0)


@pytest.mark.parametrize(
    ("length_s", "kept", "lost", "num_saves"),
    [
        (9.0, 0, 0, 0),  # taken while it starts
        (14.5, 0, 4, 0),
        (15.0, 0, 5, 0),
        (18.9, 0, 7, 1),  # stored at 19 s: one second of save, three of push
        (19.0, 5, 3, 1),
        (24.9, 5, 7, 2),
        (25.0, 10, 3, 2),
    ],
)
def test_a_lease_by_hand(length_s, kept, lost, num_saves):
    """
    Steps of a second from 10 s on, a save behind every five: what is stored by the end is kept, the rest lost.
    """
    found = replay(SMALL, [Lease(length_s)])

    assert (found.kept_steps, found.lost_steps, found.num_saves) == (kept, lost, num_saves)
    assert found.goodput == pytest.approx(kept / length_s)


def test_a_lease_that_is_given_back_loses_nothing():
    """
    Only what is preempted is lost.
    """
    found = replay(SMALL, [Lease(14.5, is_preempted=False)])

    assert (found.kept_steps, found.lost_steps) == (4, 0)


def test_a_save_that_is_due_waits_for_the_push_before():
    """
    A push longer than the interval makes saves rarer; pushes do not queue up.
    """
    found = replay(replace(SMALL, push_s=50.0), [Lease(1000.0)])

    assert found.num_saves == pytest.approx(1000 / 51, abs=1)
    assert found.lost_steps < 2 * 52


def test_no_leases_have_no_goodput():
    """
    Nothing paid, nothing to divide by.
    """
    with pytest.raises(ValueError, match="no goodput"):
        replay(SMALL, [])
