"""Best intervals, goodput, the grace and money in closed form, against published values and properties."""

from __future__ import annotations

import math

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot_plugins.economics.grace import bytes_in_grace, nodes_to_fit
from spot_plugins.economics.intervals import exact_interval_s, two_level_intervals, young_interval_s
from spot_plugins.economics.money import best_goodput, break_even_hours, break_even_mean_s, effective_saving
from spot_plugins.economics.rates import rate_of_share
from spot_plugins.economics.walltime import Costs, best_interval_s, expected_wall_s, goodput, wall_per_work, waste
from spot_plugins.schedule import daly_interval_s

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

stalls = st.floats(1e-3, 1e4)
means = st.floats(60.0, 1e8)
few = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("share", [1e-15, 1e-10, 2e-9, 1e-6, 1e-3, 0.1, 1.0, 2.0, 50.0])
def test_the_exact_interval_is_lamberts(share):
    """
    M (1 + W0(-exp(-1 - C/M))), with the function W0 of another library, at any ratio of C to M.
    """
    with mpmath.workdps(50):
        expected = HOUR * float(1 + mpmath.lambertw(-mpmath.exp(-1 - mpmath.mpf(share))).real)
    assert exact_interval_s(share * HOUR, HOUR) == pytest.approx(expected, rel=1e-11)


@given(stall_s=stalls, mean_s=means)
@few
def test_neighbours_of_the_exact_interval_cost_more(stall_s, mean_s):
    """
    The interval is the minimum of the wall time.
    """
    best = exact_interval_s(stall_s, mean_s)
    if stall_s > 20 * mean_s:
        return  # every interval takes longer than numbers can tell
    costs = Costs(stall_s=stall_s)

    wall = wall_per_work(best, costs, mean_s)
    assert wall <= wall_per_work(best * 1.05, costs, mean_s)
    assert wall <= wall_per_work(best * 0.95, costs, mean_s)


@given(stall_s=stalls, mean_s=means, factor=st.floats(1.01, 100))
@few
def test_more_preemptions_mean_shorter_intervals_and_less_goodput(stall_s, mean_s, factor):
    """
    All figures are monotone in the rate.
    """
    costs = Costs(stall_s=stall_s, push_s=2 * stall_s, restart_s=100)

    assert exact_interval_s(stall_s, mean_s) < exact_interval_s(stall_s, mean_s * factor)
    for is_noticed in (False, True):
        seldom = best_goodput(costs, mean_s * factor, is_noticed=is_noticed)
        assert best_goodput(costs, mean_s, is_noticed=is_noticed) <= seldom <= 1


@pytest.mark.parametrize(
    ("share", "young", "daly"), [(0.001, 0.02, 0.002), (0.01, 0.07, 0.002), (0.1, 0.25, 0.002), (0.9, None, 0.05)]
)
def test_the_errors_of_the_approximations(share, young, daly):
    """
    As published: Young's interval is 2 to 25 % too long at C/2M = 0.001 to 0.1, Daly's almost exact up to 0.1.
    """
    stall_s = 2 * share * HOUR
    exact = exact_interval_s(stall_s, HOUR)

    if young is not None:
        assert young_interval_s(stall_s, HOUR) / exact - 1 == pytest.approx(young, abs=0.01)
    assert abs(daly_interval_s(stall_s, HOUR) / exact - 1) <= daly + 0.005


@pytest.mark.parametrize(
    ("num_gb", "per_day", "nodes", "minutes"),
    [  # waiting for 100 and for 500 MB/s, and staging at 1 and at 5 GB/s with the push beside training
        (3, 0.05, 1, (2.79 * 60, 75, 53, 24)),
        (3, 0.08, 1, (2.18 * 60, 59, 42, 19)),
        (3, 0.15, 1, (1.56 * 60, 42, 30, 13)),
        (3, 0.20, 1, (80, 36, 25, 11)),
        (35, 0.05, 1, (9.5 * 60, 4.3 * 60, 3.0 * 60, 81)),
        (35, 0.20, 1, (4.5 * 60, 2.0 * 60, 1.4 * 60, 39)),
        (140, 0.05, 4, (4.7 * 60, 127, 90, 40)),
        (140, 0.20, 4, (2.2 * 60, 61, 43, 19)),
        (810, 0.15, 16, (1.5 * 60, 42, 30, 14)),
        (810, 0.20, 64, (19, 8.9, 6.4, 2.9)),
    ],
)
def test_the_intervals_of_the_reference_table(num_gb, per_day, nodes, minutes):
    """
    Best intervals by size, rate and speed, to the digits of the table.
    """
    mean_s = rate_of_share(per_day, 24).mean_s(nodes)
    found = [exact_interval_s(num_gb / nodes / speed, mean_s) / MINUTE for speed in (0.1, 0.5, 1.0, 5.0)]

    assert found == pytest.approx(minutes, rel=0.04)


@pytest.mark.parametrize(
    ("stall_s", "per_day", "nodes", "restart_s", "waste"),
    [
        (30, 0.05, 1, 120, 0.006),
        (0.6, 0.05, 1, 120, 0.001),
        (30, 0.20, 1, 120, 0.012),
        (350, 0.05, 4, 950, 0.043),
        (350, 0.15, 4, 950, 0.080),
    ],
)
def test_the_waste_of_the_reference_table(stall_s, per_day, nodes, restart_s, waste):
    """
    Waste at the best interval. The table is of first order, so a large waste agrees less well.
    """
    mean_s = rate_of_share(per_day, 24).mean_s(nodes)
    found = 1 - best_goodput(Costs(stall_s=stall_s, restart_s=restart_s), mean_s)

    assert found == pytest.approx(waste, abs=0.001, rel=0.05)


def test_two_levels():
    """
    The example of the reference: 140 GB on 4 machines, 8 % a day, a crash every two days.
    """
    found = two_level_intervals(7.0, 48 * HOUR, 70.0, rate_of_share(0.08, 24).mean_s(4))

    assert (round(found.local_s / MINUTE), round(found.store_s / MINUTE)) == (26, 100)
    assert (round(found.waste, 3), round(found.waste_of_store_alone, 3)) == (0.032, 0.037)


def test_pushes_do_not_overlap():
    """
    The interval is at least a push, whatever the stall.
    """
    assert best_interval_s(Costs(stall_s=0.0, push_s=300.0), HOUR) == 300.0
    assert best_interval_s(Costs(stall_s=60.0, push_s=1.0), HOUR) == exact_interval_s(60.0, HOUR)


def test_the_ends_of_the_scale():
    """
    Without preemptions nothing is lost but the stalls, and no saves are best. With them, no saves never end.
    """
    costs = Costs(stall_s=10.0, restart_s=60.0)

    assert young_interval_s(5.0, math.inf) == exact_interval_s(5.0, math.inf) == math.inf
    assert exact_interval_s(0.0, HOUR) == 0.0
    assert wall_per_work(math.inf, costs, math.inf) == 1.0
    assert wall_per_work(100.0, costs, math.inf) == 1.1
    assert wall_per_work(math.inf, costs, HOUR) == math.inf
    assert goodput(math.inf, costs, HOUR) == 0.0
    assert wall_per_work(1e6, costs, 1.0) == math.inf  # beyond all numbers
    assert best_goodput(costs, 1e-3) == 0.0
    assert best_goodput(Costs(stall_s=0.0), HOUR) == pytest.approx(1.0, abs=1e-6)
    assert expected_wall_s(0.0, 100.0, costs, HOUR) == 0.0


def test_a_job_that_is_shorter_than_its_interval():
    """
    Its end is its only save.
    """
    costs = Costs(stall_s=10.0)

    assert expected_wall_s(600.0, 1e9, costs, DAY) == expected_wall_s(600.0, 600.0, costs, DAY)
    assert 610.0 < expected_wall_s(600.0, math.inf, costs, DAY) < 615.0


@given(stall_s=stalls, mean_s=means, interval_s=st.floats(1.0, 1e5))
@few
def test_the_parts_of_the_waste_add_up(stall_s, mean_s, interval_s):
    """
    With the goodput they are the whole time, and none is negative.
    """
    costs = Costs(stall_s=stall_s, push_s=20.0, restart_s=100.0)
    parts = waste(interval_s, costs, mean_s)

    assert min(parts.stalls, parts.restarts, parts.repeated) >= 0
    total = parts.stalls + parts.restarts + parts.repeated + goodput(interval_s, costs, mean_s)
    assert total == pytest.approx(1.0, abs=1e-9)


def test_the_parts_of_the_waste_by_hand():
    """
    Rare preemptions: a stall of 1 % of the time, a restart of 1 hour in 100, and half an interval lost.
    """
    parts = waste(100.0, Costs(stall_s=1.0, restart_s=1.0), 1e4)

    assert [parts.stalls, parts.restarts, parts.repeated] == pytest.approx([0.01, 1e-4, 50.5e-4], rel=0.02)


@given(stall_s=st.floats(0.0, 100), mean_s=st.floats(1e3, 1e7), interval_s=st.floats(100, 1e4))
@few
def test_a_notice_in_time_saves_work(stall_s, mean_s, interval_s):
    """
    At any interval above the stall, a save after the notice keeps at least as much as none.
    """
    costs = Costs(stall_s=stall_s, push_s=5.0, restart_s=60.0)

    noticed = goodput(interval_s, costs, mean_s, is_noticed=True)
    assert goodput(interval_s, costs, mean_s) <= noticed * (1 + 1e-12)


@pytest.mark.parametrize(
    ("num_gb", "grace_s", "nodes"),
    [
        (35, 5, (None, None)),
        (35, 30, (18, 4)),
        (35, 60, (7, 2)),
        (35, 120, (4, 1)),
        (140, 30, (70, 14)),
        (140, 60, (28, 6)),
        (140, 120, (13, 3)),
        (810, 30, (405, 81)),
        (810, 60, (162, 33)),
        (810, 120, (74, 15)),
    ],
)
def test_the_machines_that_fit_into_the_grace(num_gb, grace_s, nodes):
    """
    The reference table: 10 seconds until the first byte, then 100 or 500 MB/s.
    """
    assert tuple(nodes_to_fit(num_gb * 1e9, grace_s, 10, speed) for speed in (1e8, 5e8)) == nodes


def test_the_bytes_that_fit_into_the_grace():
    """
    2 and 55 GB of the same table, and nothing if the grace ends before the first byte.
    """
    assert [bytes_in_grace(30, 10, 1e8), bytes_in_grace(120, 10, 5e8), bytes_in_grace(5, 10, 1e9)] == [2e9, 55e9, 0.0]


def test_money():
    """
    By hand: at 40 % of the price and a goodput of 0.8, half the money is saved. That pays 1,000 in 62.5 hours.
    """
    assert effective_saving(0.8, 2.0, 0.8) == pytest.approx(0.5)
    assert effective_saving(2.0, 2.0, 0.8) == pytest.approx(-0.25)
    assert effective_saving(0.8, 2.0, 0.0) == -math.inf
    assert break_even_hours(1000.0, 0.8, 2.0, 0.8, gpus=16) == pytest.approx(62.5)
    assert break_even_hours(1000.0, 2.0, 2.0, 0.8, gpus=16) == math.inf


@given(ratio=st.floats(0.02, 0.98), is_noticed=st.booleans())
@few
def test_spot_costs_the_same_at_the_break_even(ratio, is_noticed):
    """
    At the rate that is found, goodput equals the ratio of the prices.
    """
    costs = Costs(stall_s=7.0, push_s=70.0, restart_s=120.0)
    mean_s = break_even_mean_s(ratio, costs, is_noticed=is_noticed)

    assert best_goodput(costs, mean_s, is_noticed=is_noticed) == pytest.approx(ratio, rel=1e-9)


def test_the_ends_of_the_break_even():
    """
    Spot that costs nothing always pays, and spot that costs as much as on demand never does.
    """
    costs = Costs(stall_s=7.0)

    assert (break_even_mean_s(0.0, costs), break_even_mean_s(1.0, costs)) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: young_interval_s(-1.0, 1.0), "stall_s=-1"),
        (lambda: exact_interval_s(math.nan, 1.0), "stall_s=nan"),
        (lambda: exact_interval_s(math.inf, 1.0), "stall_s=inf"),
        (lambda: exact_interval_s(1.0, 0.0), "mean_s=0"),
        (lambda: exact_interval_s(1.0, math.nan), "mean_s=nan"),
        (lambda: two_level_intervals(1.0, math.nan, 1.0, 1.0), "mean_s=nan"),
        (lambda: Costs(stall_s=-1.0), "stall_s=-1"),
        (lambda: Costs(stall_s=1.0, push_s=math.inf), "push_s=inf"),
        (lambda: Costs(stall_s=1.0, restart_s=math.nan), "restart_s=nan"),
        (lambda: wall_per_work(0.0, Costs(stall_s=1.0), 1.0), "interval_s=0"),
        (lambda: expected_wall_s(-1.0, 1.0, Costs(stall_s=1.0), 1.0), "work_s=-1"),
        (lambda: bytes_in_grace(-1, 0, 1), "grace_s=-1"),
        (lambda: bytes_in_grace(1, math.nan, 1), "reaction_s=nan"),
        (lambda: bytes_in_grace(1, 0, 0), "bytes_per_s=0"),
        (lambda: nodes_to_fit(0, 1, 0, 1), "num_bytes=0"),
        (lambda: effective_saving(-1, 1, 1), "spot_price=-1"),
        (lambda: effective_saving(1, 0, 1), "on_demand_price=0"),
        (lambda: effective_saving(1, 1, 1.5), "spot_goodput=1.5"),
        (lambda: break_even_mean_s(math.nan, Costs(stall_s=1.0)), "price_ratio=nan"),
        (lambda: break_even_hours(-1, 1, 1, 1, 1), "effort=-1"),
        (lambda: break_even_hours(1, 1, 1, 1, 0), "gpus=0"),
    ],
)
def test_what_is_no_number_is_refused(call, message):
    """
    With the name and the value of the argument.
    """
    with pytest.raises(ValueError, match=message):
        call()
