"""Simulated wall times, against the closed form, a real trace and jobs that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from leases import p3_leases

from spot_plugins.economics import Lease
from spot_plugins.economics.simulation import SEED, Job, random_lives, simulate_wall_s, traced_lives
from spot_plugins.economics.walltime import Costs, wall_per_work

DAY = 86400.0
LORA_70B = Costs(stall_s=7.0, push_s=70.0, restart_s=120.0)
LORA_7B = Costs(stall_s=0.6, push_s=6.0, restart_s=120.0)


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


@pytest.mark.parametrize(
    ("interval_s", "costs", "mean_s", "nodes"),
    [
        (600.0, Costs(stall_s=30, restart_s=120), 7200.0, 1),
        (300.0, Costs(stall_s=5, restart_s=300), 3600.0, 1),
        (1800.0, Costs(stall_s=60, push_s=900, restart_s=600), 6 * 3600.0, 1),
        (600.0, Costs(stall_s=30, push_s=60, restart_s=120), 8 * 7200.0, 8),
    ],
)
def test_random_lives_agree_with_the_closed_form(rng, interval_s, costs, mean_s, nodes):
    """
    To 0.1 %, with pushes that block and that do not, on one machine and on eight.
    """
    job = Job(work_s=90 * DAY, interval_s=interval_s, costs=costs, nodes=nodes)
    walls = simulate_wall_s(job, random_lives(mean_s, rng), 2000, 1e9)

    assert walls.mean() == pytest.approx(job.work_s * wall_per_work(interval_s, costs, mean_s / nodes), rel=1e-3)


@pytest.mark.parametrize(
    ("costs", "every_min", "is_noticed", "expected"),
    [
        (LORA_70B, 60, False, 0.683),
        (LORA_70B, 30, False, 0.822),
        (LORA_70B, 10, False, 0.910),
        (LORA_70B, 5, False, 0.917),
        (LORA_70B, 10, True, 0.954),
        (LORA_7B, 10, False, 0.926),
        (LORA_7B, 10, True, 0.976),
    ],
)
def test_a_trace_agrees_with_its_replay(rng, costs, every_min, is_noticed, expected):
    """
    To 0.5 %: goodput of the AWS p3 fleet by an independent simulator, with and without notices.
    """
    job = Job(work_s=30 * DAY, interval_s=every_min * 60, costs=costs, is_noticed=is_noticed)
    walls = simulate_wall_s(job, traced_lives(p3_leases(), rng), 1000, 1e9)

    assert job.work_s / walls.mean() == pytest.approx(expected, rel=0.005)


def lives_of(*lengths):
    """A source of these lives in turn, again and again."""
    drawn = 0

    def draw(size):
        nonlocal drawn
        found = [lengths[(drawn + index) % len(lengths)] for index in range(size)]
        drawn += size
        return np.array(found, dtype=float)

    return draw


@pytest.mark.parametrize(
    ("lives", "nodes", "is_noticed", "wall_s"),
    [
        ([1e9], 1, False, 30 + 3 * 1 + 2),  # never taken: three saves, and the last push
        ([23.9, 1e9], 1, False, 23.9 + 5 + 20 + 2 * 1 + 2),  # 10 s are stored at 13 s, 20 s only at 24 s
        ([24.0, 1e9], 1, False, 24.0 + 5 + 10 + 1 + 2),
        ([4.0, 24.0, 1e9], 1, False, 4 + 24 + 5 + 20 + 2 * 1 + 2),  # a restart is part of the second life
        ([23.9, 1e9], 1, True, 23.9 + 5 + (30 - 19.9) + 2 * 1 + 2),  # 20.9 s up to the last save, one of them a save
        ([1e9, 24.0, 1e9], 2, False, 24.0 + 5 + 10 + 1 + 2),
    ],
)
def test_a_job_by_hand(lives, nodes, is_noticed, wall_s):
    """
    30 s of training with a save every 10 s that stalls 1 s and is stored 2 s later. A restart takes 5 s.
    """
    job = Job(
        work_s=30.0,
        interval_s=10.0,
        costs=Costs(stall_s=1.0, push_s=2.0, restart_s=5.0),
        nodes=nodes,
        is_noticed=is_noticed,
    )
    assert simulate_wall_s(job, lives_of(*lives), 1, 1e6) == pytest.approx([wall_s])


def test_a_job_without_saves(rng):
    """
    It ends in the first life that is long enough, or with the notice keeps what it has.
    """
    job = Job(work_s=30.0, interval_s=math.inf, costs=Costs(stall_s=1.0, restart_s=5.0))
    assert simulate_wall_s(job, lives_of(20, 30, 1e9), 1, 1e6) == pytest.approx([20 + 30 + 5 + 31])

    noticed = Job(work_s=30.0, interval_s=math.inf, costs=job.costs, is_noticed=True)
    assert simulate_wall_s(noticed, lives_of(20, 1e9), 1, 1e6) == pytest.approx([20 + 5 + 11 + 1])


def test_a_run_that_takes_too_long_is_given_up(rng):
    """
    It is infinite, so that no mean and no quantile hides it.
    """
    job = Job(work_s=1000.0, interval_s=100.0, costs=Costs(stall_s=1.0))
    assert simulate_wall_s(job, random_lives(1.0, rng), 3, 1e4).tolist() == [math.inf] * 3


def test_the_same_seed_gives_the_same_times():
    """
    A plan that is made again is the same, with more runs than are simulated at once.
    """
    job = Job(work_s=DAY, interval_s=600.0, costs=LORA_7B)
    first, second = (simulate_wall_s(job, random_lives(3600, np.random.default_rng(SEED)), 20_000, 1e9) for _ in "ab")

    assert len(first) == 20_000
    assert np.array_equal(first, second)


def test_a_lease_without_a_preemption_is_continued(rng):
    """
    Lives have the rate of preemptions of the trace, and not its mean length.
    """
    lives = traced_lives([Lease(100.0), Lease(300.0, is_preempted=False)], rng)(200_000)

    assert lives.mean() == pytest.approx(400.0, rel=0.02)
    with pytest.raises(ValueError, match="no lease was preempted"):
        traced_lives([Lease(100.0, is_preempted=False)], rng)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"work_s": 0.0}, "work_s=0"),
        ({"work_s": math.nan}, "work_s=nan"),
        ({"interval_s": 0}, "interval_s=0"),
        ({"nodes": 0}, "nodes=0"),
    ],
)
def test_what_is_no_job_is_refused(values, message):
    """
    With the name and the value of the field.
    """
    with pytest.raises(ValueError, match=message):
        Job(**{"work_s": 1.0, "interval_s": 1.0, "costs": LORA_7B, **values})
