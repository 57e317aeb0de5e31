"""The verdict on faults that a training survives, on facts that no training has to be run for."""

from __future__ import annotations

import pytest

from spot_plugins.drill.faults import StoreOutage
from spot_plugins.drill.inner_faults import ClockJump, FullDisk, SlowDisk
from spot_plugins.drill.lives import FaultEnd, Injected, Life, LifeLog
from spot_plugins.drill.plan import Pace
from spot_plugins.drill.survival import of_survived
from spot_plugins.drill.timings import FaultFigures

FULL = FullDisk()
PACE = Pace(last_step=99, step_s=0.1, longest_gap_s=1.0, longest_unsaved_s=2.0, grace_s=30.0)
REFUSAL = "cannot put 'steps/1': the disk is full (ENOSPC)"


@pytest.fixture
def judged(tmp_path):
    """Judge a fault that came at 10 s after step 20, when step 18 was stored, and went at 15 s after step 60."""
    (tmp_path / "output").touch()

    def judge(*, fault=FULL, refusals=(REFUSAL,), jumped_s=0.0, at_end=18, stored=99, exit_code=0, ended_at=20.0):
        end = FaultEnd(at=15.0, step=60, committed=at_end)
        injected = Injected(fault=fault, told="it is sick", at=10.0, step=20, committed=18, limit_s=9.0, end=end)
        life = Life(
            number=1,
            command=("python",),
            output=tmp_path / "output",
            began_at=0.0,
            ended_at=ended_at,
            exit_code=exit_code,
            log=LifeLog(start_step=0, committed=stored, refusals=refusals, jumped_s=jumped_s),
        )
        none = dict.fromkeys(("resumed_from", "exit_code", "left_s", "save_s", "durable_s", "load_s", "next_step_s"))
        figure = FaultFigures(fault=fault.name, told="", life=1, step=20, committed=18, **none)
        promises = list(of_survived(life, injected, figure, PACE))
        return [each.name.rpartition(": ")[2] for each in promises], {
            each.name.rpartition(": ")[2]: each.text for each in promises if not each.is_kept
        }

    return judge


CONTINUES, SAYS, STORES = "training continues", "the training says so", "steps are stored again"
SEES = "the training sees it"


def test_each_fault_has_its_promises(judged):
    """A slow disk refuses nothing, so nobody has to speak of it. A store that is away is no fault of the disk."""
    assert judged() == ([CONTINUES, SAYS, STORES], {})
    assert judged(fault=SlowDisk(), refusals=()) == ([CONTINUES, STORES], {})
    assert judged(fault=StoreOutage(), refusals=()) == ([CONTINUES], {})


def test_a_clock_that_no_process_has_read_is_told(judged):
    """Because then nothing was drilled."""
    assert judged(fault=ClockJump(), jumped_s=43200.0) == ([CONTINUES, SEES, STORES], {})
    assert judged(fault=ClockJump())[1] == {SEES: "the wall clock of its records has jumped by 0 h"}


@pytest.mark.parametrize("refusals", [(), ("the store does not answer (ELOOP)",)])
def test_a_full_disk_that_nobody_speaks_of_is_told(judged, refusals):
    """The refusal of another fault does not count."""
    assert judged(refusals=refusals)[1] == {SAYS: "no event of a session speaks of it"}


def test_the_step_before_stays(judged):
    assert judged(at_end=0)[1] == {STORES: "step 18 was stored before it, and was gone at its end"}


def test_saves_come_back(judged):
    """At the latest at the end of the training. One that ends soon by another fault need not have saved yet."""
    none = "step 18 was stored at its end, and none of a later step in the {} s that the training still ran"
    assert judged(stored=18)[1] == {STORES: none.format(5)}
    assert judged(stored=60)[1] == {STORES: none.format(5)}, "one that was staged while the disk was full"
    assert judged(stored=61)[1] == {}
    assert judged(stored=18, exit_code=-9, ended_at=23.9)[1].keys() == {CONTINUES}
    assert judged(stored=18, exit_code=-9, ended_at=24.1)[1] == {
        CONTINUES: "it is sick for 5 s, in which 40 steps were done; it was killed by signal 9 after step 0, and "
        "printed nothing",
        STORES: none.format(9),
    }
