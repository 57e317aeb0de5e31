"""Options of a plan, what is estimated from them, the plan, its decision, and how it is shown."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spot_plugins.economics import quantities
from spot_plugins.economics.decision import Prospect, decide, decide_next
from spot_plugins.economics.inputs import Figure, Options, inputs_of
from spot_plugins.economics.page import duration, to_json, to_text
from spot_plugins.economics.planning import make_plan, next_machines
from spot_plugins.economics.sizes import MOMENTS, checkpoint_bytes
from spot_plugins.errors import ConfigError
from spot_plugins.schedule import Preemptions

TRACE = str(Path(__file__).parents[2] / "traces" / "bamboo_aws_p3.csv")

SMALL = Options(bytes="35GB", rate_per_day="15%")
PRICED = replace(SMALL, spot_price=1.0, on_demand_price=3.0, train_hours=100.0)


def plan_of(**changes):
    return make_plan(inputs_of(replace(SMALL, **changes)))


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (quantities.parameters, "7B", 7e9),
        (quantities.parameters, "0.35 b", 0.35e9),
        (quantities.parameters, "7e9", 7e9),
        (quantities.num_bytes, "80GB", 80e9),
        (quantities.num_bytes, "75GiB", 75 * 2**30),
        (quantities.num_bytes, "1.5 tb", 1.5e12),
        (quantities.share, "8%", 0.08),
        (quantities.share, "0.08", 0.08),
        (quantities.share, "0", 0.0),
    ],
)
def test_quantities(read, text, value):
    """
    As people write them.
    """
    assert read("name", text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(rate_per_day="8%"), "something is missing: give exactly one of params, bytes"),
        (Options(bytes="1GB"), "something is missing: give exactly one of rate_per_day, rate_per_month, trace, run"),
        (replace(SMALL, params="7B"), "params and bytes exclude each other: give exactly one"),
        (replace(SMALL, trace=TRACE), "rate_per_day and trace exclude each other"),
        (replace(SMALL, bytes="80XB"), "bytes='80XB' is no number above 0 with a known unit: write it as 80GB"),
        (replace(SMALL, bytes="-1GB"), "bytes='-1GB' is no number above 0"),
        (replace(SMALL, bytes="1.2.3GB"), "bytes='1.2.3GB' is no number above 0"),
        (replace(SMALL, bytes=None, params="many"), "params='many' is no number above 0"),
        (replace(SMALL, bytes=None, params="1e999"), "params='1e999' is no number above 0"),
        (replace(SMALL, bytes=None, params="7B", optimizer="adem"), "optimizer='adem' is not known here: give one of"),
        (replace(SMALL, bytes=None, params="7B", dtype="int8"), "dtype='int8' is not known here"),
        (replace(SMALL, rate_per_day="8"), "rate_per_day='8' is no share of the machines: write it as 8% or 0.08"),
        (replace(SMALL, rate_per_day="100%"), "is no share of the machines"),
        (replace(SMALL, rate_per_day="nan"), "is no share of the machines"),
        (replace(SMALL, gpus=0), "gpus=0 must be a finite number above 0"),
        (replace(SMALL, nodes=10**8, gpus=10**8), "gpus=100000000 is more than can be planned for: give at most 1e+07"),
        (replace(SMALL, grace=-1.0), "grace=-1.0 must be a finite number at least 0"),
        (replace(SMALL, grace=math.nan), "grace=nan must be a finite number"),
        (replace(SMALL, train_hours=math.inf), "train_hours=inf must be a finite number above 0"),
        (replace(SMALL, upload_gbps=0.0), "upload_gbps=0.0 must be a finite number above 0"),
        (replace(SMALL, gpus=4, nodes=8), "gpus=4 is less than nodes=8: give the number of GPUs of all nodes"),
        (replace(SMALL, deadline_hours=5.0), "deadline_hours=5.0 says nothing without train_hours: give train_hours"),
        (replace(SMALL, spot_price=5.0), "spot_price=5.0 says nothing without on_demand_price"),
        (replace(SMALL, effort_cost=5.0), "effort_cost=5.0 says nothing without spot_price"),
        (replace(SMALL, crashes_per_day=0.5), "crashes_per_day=0.5 says nothing without disk_gbps"),
        (replace(SMALL, rate_per_day=None, preemptions=3), "preemptions=3 says nothing without machine_hours"),
        (replace(SMALL, machine_hours=3.0), "machine_hours=3.0 says nothing without preemptions"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    """
    With the field, its value and what to give.
    """
    with pytest.raises(ConfigError, match=re.escape(message)):
        inputs_of(options)


@pytest.mark.parametrize("optimizer", sorted(MOMENTS))
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "mixed"])
def test_the_estimated_bytes_are_those_of_torch(optimizer, dtype):
    """
    Weights and moments of a real optimizer after a step have the bytes of the rule.
    """
    weight = torch.nn.Parameter(torch.randn(64, 64, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32))
    made = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "sgd-momentum": lambda weights: torch.optim.SGD(weights, momentum=0.9),
    }[optimizer]([weight])
    weight.grad = torch.ones_like(weight)
    made.step()

    tensors = [weight, *(each for state in made.state.values() for each in state.values() if each is not None)]
    found = sum(each.numel() * each.element_size() for each in tensors if each.numel() > 1)
    assert checkpoint_bytes(weight.numel(), optimizer, dtype) == found


def test_estimates_have_a_basis():
    """
    What is given is said to be given, and what is estimated says by which rule.
    """
    inputs = inputs_of(Options(params="7B", optimizer="adamw", dtype="bf16", rate_per_month="20%", gpus=8, nodes=2))

    assert inputs.checkpoint_bytes == Figure(42e9, "estimated: 7 B parameters x 2 bytes x (1 weight + 2 of adamw)")
    assert inputs.upload_bytes_per_s == Figure(500e6, "assumed; measure it with --measure URL")
    assert inputs.stall_s.value == pytest.approx(42 / 8 / 10)
    assert inputs.restart_s.value == pytest.approx(120 + 42)
    assert inputs.rate.per_hour == pytest.approx(-math.log(0.8) / 720)
    assert inputs_of(replace(SMALL, stall_seconds=3.0)).stall_s == Figure(3.0, "given")
    assert inputs_of(SMALL, upload=Figure(7.0, "measured")).upload_bytes_per_s == Figure(7.0, "measured")
    assert inputs_of(replace(SMALL, upload_gbps=8.0)).upload_bytes_per_s == Figure(1e9, "given")


def test_the_reference_case():
    """
    70B QLoRA at 15 % a day and 500 MB/s: 2.4 h if training waits, and every 30 min with 7 s of stall.
    """
    plan = plan_of(stall_seconds=7.0, step_seconds=2.0)
    waits = plan_of(stall_seconds=0.0, step_seconds=2.0).blocking

    assert waits.interval_s / 3600 == pytest.approx(2.4, rel=0.02)
    assert plan.beside.interval_s / 3600 == pytest.approx(1.7 * math.sqrt(7 / 35) * math.sqrt(148 / 148), rel=0.04)
    assert plan.beside.num_steps == round(plan.beside.interval_s / 2)
    assert plan.beside.daly_s == pytest.approx(plan.beside.interval_s, rel=0.002)
    assert plan.blocking.goodput < plan.beside.goodput < 1


@pytest.mark.parametrize(
    ("grace", "nodes", "fits"), [(30.0, 3, False), (30.0, 4, True), (120.0, 1, True), (5.0, 64, False)]
)
def test_the_grace(grace, nodes, fits):
    """
    35 GB at 500 MB/s and 10 s until the first byte, as in the reference table. What fits is kept.
    """
    plan = plan_of(grace=grace, nodes=nodes, gpus=nodes, stall_seconds=0.0)

    assert plan.grace.fits is fits
    assert plan.grace.nodes_needed == {30.0: 4, 120.0: 1, 5.0: None}[grace]
    assert plan.goodput == (plan.grace.goodput if fits else plan.beside.goodput)
    assert plan.grace.goodput > plan.beside.goodput


def test_an_interval_is_at_least_a_step():
    """
    Nobody can save more often than once per step.
    """
    plan = plan_of(stall_seconds=0.0, upload_gbps=1e6, step_seconds=30.0)

    assert (plan.beside.interval_s, plan.beside.num_steps) == (30.0, 1)


def test_wall_times():
    """
    Simulated runs agree with the formula, and more slow ones than the mean are among them. Notices save time.
    """
    wall = plan_of(train_hours=500.0).wall
    noticed = plan_of(train_hours=500.0, grace=120.0).wall

    assert wall.num_runs == 2000
    assert wall.simulated_h == pytest.approx(wall.expected_h, rel=2e-3)
    assert 500 < noticed.expected_h < wall.expected_h < wall.late_h
    assert noticed.simulated_h == pytest.approx(noticed.expected_h, rel=2e-3)


def test_wall_times_by_a_trace():
    """
    On several machines the leases of the trace interrupt the job as often as random ones at its rate.
    """
    plan = plan_of(rate_per_day=None, trace=TRACE, nodes=4, gpus=4, train_hours=50.0)

    assert plan.wall.simulated_h == pytest.approx(plan.wall.expected_h, rel=0.05)
    assert plan.wall.expected_at_low_h < plan.wall.expected_h < plan.wall.expected_at_high_h
    assert "runs with leases of the trace" in to_text(plan)


def test_a_job_that_never_ends():
    """
    It is not simulated, and no figure hides it.
    """
    plan = plan_of(rate_per_day=None, preemptions=1000, machine_hours=1.0, train_hours=50.0)

    assert (plan.wall.simulated_h, plan.wall.late_h, plan.wall.num_runs) == (None, None, 0)
    assert "not simulated, because there are too many preemptions" in to_text(plan)


def test_rates_beyond_all_use():
    """
    Nothing is kept, everything costs without limit, and on-demand is recommended.
    """
    plan = make_plan(inputs_of(replace(PRICED, rate_per_day=None, preemptions=10**6, machine_hours=1e-3)))
    text = to_text(plan)

    assert (plan.goodput, plan.decision.choice) == (0.0, "on-demand")
    assert "never ends" in text
    assert "without limit on spot" in text
    assert json.loads(to_json(plan))["money"]["effective_saving"] is None


def test_no_preemptions():
    """
    A rate of 0 needs no periodic saves. A count of 0 is no proof of that, so its upper limit counts.
    """
    never = plan_of(rate_per_day="0", train_hours=50.0)
    counted = plan_of(rate_per_day=None, preemptions=0, machine_hours=50.0, train_hours=50.0)

    assert (never.mean_s, never.beside.interval_s, never.goodput) == (math.inf, math.inf, 1.0)
    assert never.wall.late_h == pytest.approx(50.0, abs=0.05)
    assert counted.mean_s == pytest.approx(3600 * 50 / 3.6888794541139363)
    assert "at the upper limit, because no preemption was counted" in to_text(counted)


def test_money():
    """
    The saving is what is paid for the expected time on spot, beside the same training on demand.
    """
    plan = make_plan(inputs_of(replace(PRICED, gpus=8, effort_cost=1600.0)))

    assert plan.money.on_demand_cost == 2400.0
    assert plan.money.spot_cost == pytest.approx(8 * 1.0 * plan.wall.expected_h, rel=1e-3)
    assert plan.money.effective_saving == pytest.approx(1 - plan.money.spot_cost / 2400)
    assert plan.money.break_even_price == pytest.approx(3.0 * plan.goodput)
    assert plan.money.effort_hours == pytest.approx(1600 / (2400 - plan.money.spot_cost) * 100)


PROSPECT = Prospect(
    price_ratio=0.4,
    goodput=0.9,
    goodput_at_worst=None,
    break_even_per_day=12.0,
    train_hours=100.0,
    late_hours=120.0,
    deadline_hours=None,
)


@pytest.mark.parametrize(
    ("changes", "choice", "reason"),
    [
        ({}, "spot", "costs 44% of what it costs on demand"),
        ({"price_ratio": None}, "undecided", "costs less than 90.0% of an hour on demand"),
        ({"goodput": 0.3}, "on-demand", "30% of the time on spot is kept training, but an hour costs 40%"),
        ({"goodput": 0.4}, "on-demand", "is kept training"),
        ({"deadline_hours": 130.0}, "spot", "costs 44%"),
        ({"deadline_hours": 110.0}, "hybrid", "one run in twenty on spot alone misses the deadline of 110 h"),
        ({"deadline_hours": 90.0}, "on-demand", "even without a preemption training takes 100 h"),
        ({"deadline_hours": 110.0, "late_hours": math.inf}, "hybrid", "misses the deadline"),
        ({"goodput_at_worst": 0.3}, "hybrid", "more than 12 times a day"),
        ({"goodput_at_worst": 0.5}, "spot", "costs 44%"),
    ],
)
def test_the_decision(changes, choice, reason):
    """
    Each choice has its reason, with the numbers that led to it.
    """
    made = decide(replace(PROSPECT, **changes))

    assert made.choice == choice
    assert reason in made.reason


@pytest.mark.parametrize(
    ("low", "train_hours", "deadline_hours", "choice"),
    [
        (5.0, None, None, "spot"),
        (15.0, None, None, "wait"),
        (15.0, 10.0, 20.0, "wait"),
        (15.0, 10.0, 10.5, "on-demand"),
        (5.0, 10.0, 10.5, "on-demand"),
        (5.0, 10.0, 20.0, "spot"),
    ],
)
def test_the_next_machines(low, train_hours, deadline_hours, choice):
    """
    Spot until it certainly does not pay, then waiting, and on-demand when the deadline leaves no time to lose.
    """
    assert decide_next("seen", low, 12.0, train_hours, deadline_hours).choice == choice


def test_the_next_machines_of_a_run():
    """
    A run that was taken once in a day stays on spot, one that was taken every six minutes waits.
    """
    options = replace(PRICED, rate_per_day=None, run="url", spot_price=2.7)
    calm = next_machines(inputs_of(options, own=Preemptions(1, 86400.0)))
    storm = next_machines(inputs_of(options, own=Preemptions(10, 3600.0)))
    unknown = next_machines(inputs_of(options, own=Preemptions()))

    assert (calm.choice, storm.choice, unknown.choice) == ("spot", "wait", "spot")
    assert "the run's own: 10 preemptions of the job in 1 h" in storm.reason
    assert "because the run has no attempt that could be counted" in unknown.reason
    with pytest.raises(ConfigError, match="next says nothing without prices: give spot_price"):
        next_machines(inputs_of(SMALL))


def test_a_run_counts_as_one_job():
    """
    The rate of a machine is that of the job, divided by its machines.
    """
    inputs = inputs_of(replace(SMALL, rate_per_day=None, run="url", nodes=4, gpus=4), own=Preemptions(3, 36000.0))

    assert inputs.mean_s == pytest.approx(12000.0)


def test_the_json_document():
    """
    It has a version, the same figures, and null for never.
    """
    plan = plan_of(rate_per_day="0")
    document = json.loads(to_json(plan), parse_constant=pytest.fail)

    assert document["version"] == 1
    assert document["beside"]["interval_s"] is None
    assert document["blocking"]["push_s"] == plan.blocking.push_s
    assert document["decision"] == {"choice": plan.decision.choice, "reason": plan.decision.reason}
    assert "leases" not in document["inputs"]


def test_the_page_says_what_is_missing():
    """
    Without prices no money is shown, and each section without an answer names the option that it needs.
    """
    text = to_text(plan_of())

    assert "unknown: give --spot-price and --on-demand-price" in text
    assert "unknown: give --grace" in text
    assert "unknown: give --train-hours" in text


def test_the_page_has_two_levels():
    """
    The example of the reference: local disk every 26 minutes, store every 100 minutes.
    """
    text = to_text(
        plan_of(bytes="140GB", rate_per_day="8%", nodes=4, gpus=4, disk_gbps=40.0, crashes_per_day=0.5, upload_gbps=4.0)
    )
    assert "local disk every 26 min, store every 100 min, waste 3.2% and not 3.7%" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.05, "0.05 s"), (59.4, "59 s"), (119, "119 s"), (600, "10 min"), (8000, "2.2 h"), (4e5, "4.6 days")],
        (math.inf, "never"),
    ],
)
def test_durations(seconds, text):
    """
    With two digits at least, and a unit that suits.
    """
    assert duration(seconds) == text
