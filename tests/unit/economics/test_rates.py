"""Rates of preemptions: shares of providers, counts with their exact interval, and real traces."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot_plugins.economics.rates import (
    HOURS_PER_MONTH,
    counted_rate,
    exact_interval,
    rate_of_share,
)
from spot_plugins.economics.traces import read_trace
from spot_plugins.errors import ConfigError

TRACES = Path(__file__).parents[2] / "traces"


@pytest.mark.parametrize(
    ("count", "exposure", "low", "high"),
    [
        (0, 5.0, 0.0, 0.737775890822787),
        (1, 5.0, 0.005063561596857976, 1.1143286781877797),
        (3, 2.5, 0.24746884915824055, 3.506909227896929),
        (20, 7.0, 1.7452170836291347, 4.4126254146678),
        (200, 30.0, 5.77469608938191, 7.657399388848329),
        (1442, 12121.0, 0.11290525517545348, 0.12526981415976188),
        (1_000_000, 1.0, 998040.9833402939, 1001961.9119454322),
    ],
)
def test_the_exact_interval_of_a_count(count, exposure, low, high):
    """
    Garwood's limits, from the chi-squared quantiles of scipy.
    """
    assert exact_interval(count, exposure) == pytest.approx((low, high), rel=1e-9)


@given(count=st.integers(1, 3000), level=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=20, deadline=None)
def test_the_limits_are_quantiles(count, level):
    """
    The gamma distribution of mpmath has half of what is missing from the level on either side.
    """
    low, high = exact_interval(count, 1.0, level)
    with mpmath.workdps(30):
        below = float(mpmath.gammainc(count, 0, low, regularized=True))
        above = float(mpmath.gammainc(count + 1, high, mpmath.inf, regularized=True))
    # The tails change at least sqrt(count) times as fast as the limits, so this is 1e-9 of the limits.
    assert [below, above] == pytest.approx([(1 - level) / 2] * 2, rel=1e-9 * math.sqrt(count))


@pytest.mark.parametrize(("share", "mean_h"), [(0.05, 468), (0.08, 288), (0.15, 148), (0.20, 108)])
def test_a_share_per_day(share, mean_h):
    """
    The mean times of the reference table. A share of 20 % per day is one preemption in 108 hours, not in 120.
    """
    assert round(rate_of_share(share, 24).mean_s() / 3600) == mean_h


def test_a_share_per_month_is_thirty_times_rarer():
    """
    A monthly share that is read as a daily one makes spot look thirty times worse than it is.
    """
    assert rate_of_share(0.2, HOURS_PER_MONTH).per_hour == pytest.approx(rate_of_share(0.2, 24).per_hour / 30)


def test_a_job_on_more_machines_is_preempted_more_often():
    """
    Any machine that is taken interrupts the job.
    """
    rate = counted_rate(3, 100.0)

    assert rate.mean_s(4) == pytest.approx(rate.mean_s() / 4)
    assert rate.low_per_hour < rate.per_hour == 0.03 < rate.high_per_hour
    assert rate_of_share(0.0, 24).mean_s(4) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rate_of_share(1.0, 24), "share=1.0"),
        (lambda: rate_of_share(-0.1, 24), "share=-0.1"),
        (lambda: rate_of_share(math.nan, 24), "share=nan"),
        (lambda: rate_of_share(0.1, 0), "hours=0"),
        (lambda: rate_of_share(0.1, math.inf), "hours=inf"),
        (lambda: counted_rate(-1, 5.0), "count=-1"),
        (lambda: counted_rate(1, 0.0), "exposure=0.0"),
        (lambda: counted_rate(1, math.nan), "exposure=nan"),
        (lambda: exact_interval(1, 5.0, 1.0), "level=1.0"),
    ],
)
def test_what_is_no_rate_is_refused(call, message):
    """
    With the name and the value of the argument.
    """
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("name", "per_day"), [("bamboo_aws_p3", 14.7), ("bamboo_aws_g4dn", 13.1), ("gcp_2019", 1.42)])
def test_a_trace_of_leases(name, per_day):
    """
    The rates of real fleets. That of Google has the daily limit of preemptible machines among its preemptions.
    """
    trace = read_trace(str(TRACES / f"{name}.csv"))

    assert trace.num_preemptions / trace.machine_hours * 24 == pytest.approx(per_day, rel=0.005)
    assert sum(each.is_preempted for each in trace.leases) == trace.num_preemptions


def test_a_trace_of_leases_with_their_starts(tmp_path):
    """
    Starts and ends are as good as lengths. What ended otherwise is time without a preemption.
    """
    (tmp_path / "t.csv").write_text("start_s,end_s,end_reason\n100,3700,preempted\n0,3600,trace_end\n0,1800,cap_24h\n")
    trace = read_trace(str(tmp_path / "t.csv"))

    assert (trace.num_preemptions, trace.machine_hours) == (2, 2.5)


def test_a_trace_of_sizes(tmp_path):
    """
    Each machine less is a preemption. Fleets are independent, and growing is none.
    """
    rows = ["trace_id,t_s,n_before,n_after", "a,0,,4", "b,50,,2", "a,3600,4,1", "b,3650,2,2", "a,7200,1,3"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    trace = read_trace(str(tmp_path / "t.csv"))

    assert (trace.num_preemptions, trace.machine_hours, trace.leases) == (3, 4 + 1 + 2, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "trace='.*' cannot be read: No such file"),
        ("", "lacks columns: give a CSV file with start_s"),
        ("length_s\n5\n", "lacks columns"),
        ("length_s,end_reason\n5,eaten\n", "has a row that makes no sense: end_reason=eaten"),
        ("length_s,end_reason\nfive,preempted\n", "has a row that makes no sense: could not convert"),
        ("length_s,end_reason\n-5,preempted\n", "makes no sense: a lease of -5.0 s"),
        ("length_s,end_reason\nnan,preempted\n", "makes no sense: a lease of nan s"),
        ("length_s,end_reason\n5\n", "makes no sense: end_reason=None"),
        ("length_s,end_reason\n0,preempted\n", "has no machine time: give a file"),
        ("t_s,n_before,n_after\n0,,5\n9,5,4\n3,4,5\n", "t_s=3 is earlier than the row before"),
        ("t_s,n_before,n_after\n0,,-5\n", "makes no sense: t_s=0, n_before=-5, n_after=-5"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, message):
    """
    With the file, what is wrong with it and what to give.
    """
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(str(path))


def test_what_is_no_text_is_refused(tmp_path):
    """
    A compressed file, for example.
    """
    (tmp_path / "t.csv").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(str(tmp_path / "t.csv"))
