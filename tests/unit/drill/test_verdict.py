"""The verdict on facts that no training has to be run for."""

from __future__ import annotations

import pytest

from spot_plugins.drill.faults import Corruption, Notice
from spot_plugins.drill.lives import Injected, Life, LifeLog, Run
from spot_plugins.drill.plan import Pace
from spot_plugins.drill.runner import Facts, Options
from spot_plugins.drill.verdict import judge

DAMAGED, INTACT = 25, 20


@pytest.fixture
def judged(tmp_path):
    """Judge a training with one fault in its first start. Return the broken promises of the fault."""

    def broken(injected, log, exit_code, next_log):
        url = f"file://{tmp_path}"
        (tmp_path / "output").touch()
        common = {"command": ("python", "train.py"), "output": tmp_path / "output", "began_at": 0.0, "ended_at": 9.0}
        lives = (
            Life(number=1, exit_code=exit_code, log=log, injected=[injected], **common),
            Life(number=2, exit_code=0, log=next_log, **common),
        )
        control = Run(lives=(Life(number=1, exit_code=0, reached_at={1: 1.0}, **common),), url=url, words=())
        facts = Facts(
            command=("python", "train.py"),
            options=Options(),
            control=control,
            pace=Pace(last_step=99, step_s=0.1, longest_gap_s=1.0, grace_s=30.0),
            rehearsal=Run(lives=lives, url=url, words=()),
        )
        promises = [each for each in judge(facts).promises if each.name.startswith(injected.fault.name)]
        assert len(promises) >= 3
        return {each.name.rpartition(": ")[2]: each.text for each in promises if not each.is_kept}

    return broken


@pytest.fixture
def after_damage(judged):
    """Judge a training whose step 25 was damaged when it was killed after step 27. Return the broken promises."""
    injected = Injected(
        fault=Corruption(), told="it is gone", at=8.0, step=27, committed=INTACT, damaged=DAMAGED, limit_s=120.0
    )
    return lambda next_log: judged(injected, LifeLog(start_step=0), -9, next_log)


@pytest.mark.parametrize(("stored", "has_left", "is_kept"), [(99, False, True), (98, False, False), (80, True, True)])
def test_a_training_whose_last_step_is_stored_may_be_taken_while_it_ends(stored, has_left, is_kept, judged):
    """A notice can leave time for all steps that are left, and a busy machine takes long to end a process."""
    notice = Injected(fault=Notice(), told="a notice", at=0.0, step=70, committed=65, limit_s=8.0)
    taken = LifeLog(start_step=0, has_notice=True, has_left=has_left, committed=stored)
    broken = judged(notice, taken, None, LifeLog(start_step=stored))
    assert ("all processes end in time" not in broken) == is_kept, broken


def test_the_step_before_a_damaged_one_is_the_one_to_resume_from(after_damage):
    assert after_damage(LifeLog(start_step=INTACT, rejected={DAMAGED: "its hash differs"})) == {}


def test_a_training_that_continues_from_wrong_bytes_is_told(after_damage):
    """Whatever it has said of them."""
    for rejected in ({}, {DAMAGED: "its hash differs"}):
        assert after_damage(LifeLog(start_step=DAMAGED, rejected=rejected)) == {
            "the damaged step is not used": "resumed from step 25, though its bytes have changed"
        }


def test_damage_that_nobody_speaks_of_is_told(after_damage):
    """A step that is left out in silence, for example."""
    assert after_damage(LifeLog(start_step=INTACT)) == {
        "the damaged step is not used": "no session has said that step 25 is damaged"
    }


def test_damage_costs_no_more_than_the_damaged_step(after_damage):
    broken = after_damage(LifeLog(start_step=INTACT - 5, rejected={DAMAGED: "its hash differs"}))
    assert list(broken) == ["nothing that was saved is lost"]
    assert broken["nothing that was saved is lost"].endswith("Step 20 was in the store")
