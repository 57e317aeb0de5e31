"""The plan of a drill."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from spot_plugins.drill.faults import (
    DEFAULT_FAULTS,
    Corruption,
    EmptyNotice,
    HostLoss,
    KillLauncher,
    KillPusher,
    KillRank,
    Notice,
    Reboot,
    Signal,
    TwoSignals,
    faults_of,
)
from spot_plugins.drill.plan import Pace, plan_of
from spot_plugins.errors import ConfigError


def pace(last_step, step_s=1.0):
    return Pace(last_step=last_step, step_s=step_s, longest_gap_s=10.0, grace_s=30.0)


@pytest.mark.parametrize("last_step", [8, 60, 100_000])
@pytest.mark.parametrize("seed", range(20))
def test_faults_come_in_turn_within_the_training(last_step, seed):
    """In their order, each later than the one before or with it, and none in the last second."""
    planned = plan_of(DEFAULT_FAULTS, 7, pace(last_step), random.Random(seed))
    assert Counter(each.fault.name for each in planned) == Counter([*(each.name for each in DEFAULT_FAULTS), "sigterm"])
    steps = [each.step for each in planned]
    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert steps[-1] <= last_step - 1


def test_a_seed_draws_the_same_plan_again():
    """So that a drill that has found something can be run again. Another seed draws another one."""
    plans = [plan_of([Signal()], 5, pace(1000), random.Random(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize(("last_step", "step_s"), [(2, 1.0), (100, 0.005), (1, 60.0)])
def test_a_training_that_is_too_short_is_refused(last_step, step_s):
    """A fault would come after its end."""
    with pytest.raises(ConfigError, match="too few for 3 faults"):
        plan_of([Signal(), KillRank(), Notice()], 3, pace(last_step, step_s), random.Random(0))


def test_faults_are_named():
    assert faults_of("host-loss, sigterm") == (HostLoss(), Signal())
    assert faults_of("pusher-kill,reboot") == (KillPusher(), Reboot())
    assert faults_of("two-signals,notice-only,corruption,agent-kill") == (
        TwoSignals(),
        EmptyNotice(),
        Corruption(),
        KillLauncher(),
    )
    with pytest.raises(ConfigError, match=r"faults=sigterm,fire: .fire. is no fault\. Give some of sigterm,sigkill,"):
        faults_of("sigterm,fire")
