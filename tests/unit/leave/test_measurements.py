"""
The seconds between a notice and its end, in sessions that train, save and push for real.

No test depends on the speed of the machine. Where a plan is compared with numbers, time is a value.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import pytest
from hearing import DEADLINE_S, Heard, until
from steps import Holder, numbers, state_of

from spot_plugins.agreement import Notice
from spot_plugins.config import SpotConfig
from spot_plugins.errors import Preempted
from spot_plugins.events import (
    Committed,
    EventBus,
    LastSecondsPlanned,
    Leaving,
    LocalWriteFailed,
    PushFailing,
    Staged,
    WrittenLocally,
)
from spot_plugins.leave import measurements as measurements_module
from spot_plugins.leave.measurements import NUM_STEPS, Measurements
from spot_plugins.leave.plan import Situation, slowest
from spot_plugins.notices import Announcement
from spot_plugins.session import SpotSession
from spot_plugins.store import LocalStore
from spot_plugins.testing import run_thread_ranks

pytestmark = pytest.mark.long  # trains for seconds in real time

STEP_S = 0.02
MB = 1_000_000


class HandClock:
    """Stands for the module ``time`` in the measurements, and is set by hand."""

    def __init__(self):
        self.now = time.monotonic()

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = HandClock()
    monkeypatch.setattr(measurements_module, "time", clock)
    return clock


def announce(session, left_s):
    """As a source does that names the end."""
    session._opened.listener._on_announcement(Announcement("cloud", time.monotonic() + left_s))


def train(folder, world_size, on_step, *, every_steps=10):
    """Train until all leave. Return, by rank, the step it left with, and what it told."""
    pace = threading.Barrier(world_size)

    def life(ranks):
        heard = Heard()
        config = SpotConfig(url=str(folder / "run"), every_steps=every_steps)
        session = SpotSession(config, ranks=ranks, on_event=[heard])
        session.register("part", Holder(state_of(1)), replicated=("both",))
        session.resume()
        step = 0
        try:
            while True:
                step += 1
                time.sleep(STEP_S)
                pace.wait(DEADLINE_S)  # as gradients make ranks wait for each other
                on_step(session, ranks.rank, step, heard)
                session.after_step(step)
        except Preempted as preempted:
            return preempted.step, heard
        finally:
            pace.abort()
            session.close()

    return run_thread_ranks(world_size, life)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_notice_that_names_its_end_is_trained_through(world_size, tmp_path, clock):
    """
    A first save at once, then training until the last one is in time: that one is what is left in the end, it is
    durable, and most of the time is used. Every choice is told with its numbers. How much is used exactly is in
    test_plan. A step takes half a second here, and a push as long as this machine takes.
    """
    announced = {}

    def on_step(session, rank, step, heard):
        if step == NUM_STEPS:
            heard.wait(Committed)  # on every rank, because a rank that has measured nothing makes all leave at once
        for staged in heard.of(Staged):  # while a push is in flight, no step passes
            heard.wait(Committed, step=staged.step)
        if rank == 0:
            clock.now += 0.5
        if rank == 0 and step == NUM_STEPS:
            announced["step"] = step
            announce(session, 60.0)

    lives = train(tmp_path, world_size, on_step)

    [(step, heard), *others] = lives
    assert all(other[0] == step for other in others)
    assert heard.of(Leaving)[0].durable
    assert numbers(LocalStore(str(tmp_path / "run")))[0] == step
    saves = [event.step for event in heard.of(Staged, trigger="notice")]
    assert len(saves) == 2, "the first one and the last one"
    assert saves[1] == step
    assert saves[0] - announced["step"] < (step - announced["step"]) / 2
    plans = heard.of(LastSecondsPlanned)
    assert (plans[0].choice, plans[0].is_promised) == ("train_on", True)
    assert any(plan.save_first for plan in plans)
    assert (plans[-1].choice, plans[-1].step) == ("save", step)
    assert plans[0].step_s >= 0.5
    assert plans[-1].left_s < plans[0].left_s / 2
    assert plans[0].num_bytes > 0
    for other in others:  # that rank plans nothing until it leaves
        assert [plan.choice for plan in other[1].of(LastSecondsPlanned)] == ["save"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_ends_the_time_that_a_notice_left(world_size, tmp_path):
    """
    Whoever sends it waits for the process to leave: no step is trained any more, however long the notice was.
    """
    signalled = []

    def on_step(session, rank, step, heard):
        if step == 19:
            heard.wait(Committed)  # on every rank, because a rank that has measured nothing makes all leave at once
        if rank == 0 and step == 20:
            announce(session, 100.0)
        if rank == world_size - 1 and step == 40:
            assert session.notice is not None
            session._opened.listener._on_signal("SIGTERM", time.monotonic())
            until(lambda: session.notice.at_once, "the signal is known")
            signalled.append(step)

    lives = train(tmp_path, world_size, on_step)

    assert {step for step, _ in lives} <= {40, 41, 42}
    assert len({step for step, _ in lives}) == 1


def test_a_pause_ends_the_time_that_a_notice_left(tmp_path):
    """
    Validation may take longer than there is time, and what it finds is lost: it is left with the state before it.
    """

    def on_step(session, rank, step, heard):
        if step == 20:
            heard.wait(Committed)  # without a measured save it would leave at once
            announce(session, 100.0)
        if step == 31:
            with session.pause(30) as pause:
                pause.check()

    [(step, _)] = train(tmp_path, 1, on_step)

    assert step == 30


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_training_that_is_done_in_time_ends_well(world_size, tmp_path):
    """
    There is nothing that another attempt would have to do: the end is saved and stored, and nobody leaves with 143.
    """

    def life(ranks):
        config = SpotConfig(url=str(tmp_path / "run"), every_steps=5)
        session = SpotSession(config, ranks=ranks)
        session.register("part", Holder(state_of(1)), replicated=("both",))
        session.resume()
        for step in range(1, 10):
            time.sleep(STEP_S)
            session.after_step(step)
        announce(session, 100.0)
        until(lambda: session.notice, "the notice is known")
        session.finish(9)

    run_thread_ranks(world_size, life)

    assert numbers(LocalStore(str(tmp_path / "run")))[0] == 9


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_notice_before_the_first_save_is_trained_through(world_size, tmp_path, clock):
    """
    Nothing is measured yet: by estimates there is time for a first save, which is made at once, and for a last one.
    One rank can do so after its first step, several once each has made one.
    """

    def on_step(session, rank, step, heard):
        for staged in heard.of(Staged):  # while a push is in flight, no step passes
            heard.wait(Committed, step=staged.step)
        if rank == 0:
            clock.now += 2.0
        if rank == 0 and step == world_size:
            announce(session, 120.0)

    lives = train(tmp_path, world_size, on_step, every_steps=10**6)

    [(step, heard), *others] = lives
    assert all(other[0] == step for other in others)
    assert step > 25, "most of the time is used"
    assert heard.of(Leaving)[0].durable
    assert numbers(LocalStore(str(tmp_path / "run")))[0] == step
    saves = [event.step for event in heard.of(Staged, trigger="notice")]
    assert len(saves) == 2
    assert saves[0] < step / 2 < saves[1]
    plans = heard.of(LastSecondsPlanned)
    [first] = [plan for plan in plans if plan.save_first]
    assert (first.choice, first.is_promised) == ("train_on", False)
    assert first.store_bytes_per_s > 0
    assert plans[-1].choice == "save"


def test_without_a_measured_save_a_short_notice_makes_it_leave_at_once(tmp_path, caplog):
    """
    An estimate is not worth the few seconds: the save is made at once, tried, and not promised.
    """

    def on_step(session, rank, step, heard):
        if step == 5:
            announce(session, 50.0)

    [(step, heard)] = train(tmp_path, 1, on_step, every_steps=10**6)

    assert step == 5
    assert heard.of(Leaving)[0].durable
    [plan] = heard.of(LastSecondsPlanned)
    assert (plan.choice, plan.is_promised) == ("save", False)
    assert "no save was measured yet. By an estimate one takes 5 s, and " in caplog.text


@pytest.mark.parametrize(
    ("speed", "num_bytes", "left_s", "act", "told"),
    [
        (100 * MB, 1000 * MB, 120.0, "save", ""),
        (
            17 * MB,
            1000 * MB,
            120.0,
            "leave",
            "By an estimate one takes 66 s, and 120 s are left, so all leave after step 1",
        ),
        (5 * MB, 1000 * MB, 120.0, "leave", "By an estimate one takes 207 s, and 120 s are left"),
        (100 * MB, 1000 * MB, 59.0, "leave", "Training continues only if two saves fit into at least 60 s"),
        (None, 1000 * MB, 120.0, "leave", "By an estimate one takes an unknown time, and 120 s are left"),
        (100 * MB, None, 120.0, "leave", "By an estimate one takes an unknown time"),
    ],
)
def test_before_the_first_save_the_size_and_the_first_put_are_an_estimate(
    speed, num_bytes, left_s, act, told, clock, caplog
):
    """
    1 GB to memory is assumed to take 2 s, and a commit 5 s. If two saves do not fit, training leaves, and says why.
    """
    known = Measurements(False, EventBus(), speed)
    if num_bytes is not None:
        known.on_prepared(num_bytes)
    known.on_step()

    assert known.decide(1, Notice("cloud", clock.now + left_s, at_once=False), 2) == act
    assert told in caplog.text
    assert bool(told) == ("no save was measured yet" in caplog.text)


def figures_of(**changes):
    """The figures that another rank posts, which has made a step and saved nothing."""
    known = Measurements(False, EventBus(), 100 * MB)
    known.on_prepared(1000 * MB)
    return {**known.figures(), **changes}


@pytest.mark.parametrize(
    ("other", "act"),
    [
        ({}, "save"),
        ({"num_bytes": None}, "leave"),  # in its first step, so its size is unknown
        ({"in_flight_s": 5.0}, "leave"),  # this rank may have no share of that save
        ({"in_flight_s": math.inf}, "leave"),  # its store refuses
        ({"store_bytes_per_s": 5 * MB}, "leave"),
        ({"is_estimated": False, "stall_s": 0.1, "commit_s": 1.0}, "save"),
    ],
    ids=str,
)
def test_before_the_first_save_the_state_of_another_rank_counts(other, act, clock):
    known = Measurements(False, EventBus(), 100 * MB)
    known.on_prepared(1000 * MB)
    known.on_step()
    known.merge([known.figures(), figures_of(**other)])

    assert known.decide(1, Notice("cloud", clock.now + 120.0, at_once=False), 2) == act


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_share_that_another_rank_will_never_have_is_no_reason_to_train_on(is_committed, clock):
    """
    This rank has saved step 1, and the other one has not. The share is on its way, or stored.
    """
    known = Measurements(False, EventBus(), 100 * MB)
    known.on_prepared(1000 * MB)
    known.on_step()
    known.on_saved(1)
    known.on_event(Staged(step=1, trigger="end", num_bytes=1000 * MB, stall_s=0.001, copy_s=2.0))
    if is_committed:
        known.on_event(Committed(step=1, num_bytes=1000 * MB, push_s=10.0, put_bytes_per_s=100 * MB))
    known.merge([known.figures(), figures_of()])

    assert known.decide(1, Notice("cloud", clock.now + 120.0, at_once=False), 2) == "leave"


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_leave_if_the_first_save_of_a_rank_fails(world_size, tmp_path, monkeypatch, caplog):
    """
    There is no memory for the first save of the last rank. The other one has its share, and does not train on for it.
    """
    failed = []

    def on_step(session, rank, step, heard):
        if rank == world_size - 1 and step == 3:
            save = session._opened.saver.save

            def refuse(step, trigger, deadline):
                monkeypatch.setattr(session._opened.saver, "save", save)
                failed.append(step)
                raise MemoryError("refused")

            monkeypatch.setattr(session._opened.saver, "save", refuse)
            announce(session, 300.0)
        if failed and step > failed[0]:
            until(lambda: session.notice.at_once, "the failure is known")

    lives = train(tmp_path, world_size, on_step, every_steps=10**6)

    assert {step for step, _ in lives} <= {failed[0] + 1, failed[0] + 2}
    assert len({step for step, _ in lives}) == 1
    assert all(heard.of(Leaving)[0].durable for _, heard in lives)
    assert numbers(LocalStore(str(tmp_path / "run")))[0] == lives[0][0]
    assert f"the first save, of step {failed[0]}, has failed, so all ranks leave: there is no memory" in caplog.text


def test_measured_speeds_take_the_place_of_estimates(clock):
    known = Measurements(False, EventBus(), 100 * MB)
    known.on_prepared(1000 * MB)
    assert known.figures()["is_estimated"]
    known.on_event(Staged(step=1, trigger="notice", num_bytes=2000 * MB, stall_s=0.001, copy_s=2.0))
    assert known.figures()["is_estimated"]
    assert known.figures()["in_flight_s"] == pytest.approx(25.0)
    known.on_event(Committed(step=1, num_bytes=2000 * MB, push_s=10.0, put_bytes_per_s=200 * MB))
    now = known.figures()
    assert not now["is_estimated"]
    assert (now["num_bytes"], now["stage_bytes_per_s"], now["store_bytes_per_s"]) == (2000 * MB, 1000 * MB, 200 * MB)


@pytest.fixture
def told():
    return []


@pytest.fixture
def measurements(told, clock):
    """
    A rank that has measured: 1000 MB, 0.5 GB/s to memory, 1 GB/s to disk, 100 MB/s to the store, 3 s beside. Its steps
    take 0.01 s.
    """
    known = Measurements(False, EventBus(told.append))
    known.on_saved(10)
    known.on_event(Staged(step=10, trigger="steps", num_bytes=1000 * MB, stall_s=0.001, copy_s=2.0))
    known.on_event(WrittenLocally(step=10, num_bytes=1000 * MB, write_s=1.0, write_bytes_per_s=1000 * MB))
    known.on_event(Committed(step=10, num_bytes=1000 * MB, push_s=13.0, put_bytes_per_s=100 * MB))
    for _ in range(3):
        clock.now += 0.01
        known.on_step()
    return known


@pytest.fixture
def ahead(clock):
    return lambda left_s: Notice("cloud", clock.now + left_s, at_once=False)


def test_the_situation_is_what_events_have_said(measurements, ahead, told):
    """
    Sizes, speeds and what a commit takes beside its bytes; seconds of a step are those of the slowest.
    """
    assert measurements.decide(12, ahead(100.0), 0) == "save"

    [plan] = told
    assert (plan.step, plan.choice, plan.save_first) == (12, "train_on", True)
    assert plan.left_s == pytest.approx(100)
    assert (plan.num_bytes, plan.in_flight_s) == (1000 * MB, 0.0)
    assert (plan.stage_bytes_per_s, plan.disk_bytes_per_s, plan.store_bytes_per_s) == (500 * MB, 1000 * MB, 100 * MB)
    assert plan.step_s == pytest.approx(0.01)
    # 2 s to memory, 10 s to the store, 3 s beside. The disk is written to meanwhile.
    assert plan.needs_s == pytest.approx(plan.num_steps * plan.step_s + 15.0)


def test_it_leaves_when_no_more_steps_fit_than_the_ranks_need_to_agree(measurements, ahead, clock):
    """
    With 16.5 seconds and their margin one save fits exactly; each boundary that the agreement takes must fit as well.
    """
    clock.now += 1.0
    measurements.on_step()
    needed_s = 15.0 * 1.1

    assert measurements.decide(12, ahead(needed_s + 0.5), 0) == "leave"
    assert measurements.decide(12, ahead(needed_s + 2.0), 0) == "train"
    assert measurements.decide(12, ahead(needed_s + 2.0), 2) == "leave"
    assert measurements.decide(12, ahead(needed_s + 5.0), 2) == "train"


def test_a_push_in_flight_is_counted_until_it_ends(measurements, ahead, clock, told):
    """
    By what the last one took; one that is late takes as long again as it is late, and one that fails for ever.
    """
    measurements.on_saved(12)
    measurements.on_event(Staged(step=12, trigger="steps", num_bytes=1000 * MB, stall_s=0.001, copy_s=2.0))
    assert measurements.figures()["in_flight_s"] == pytest.approx(13.0)

    clock.now += 15.0
    assert measurements.figures()["in_flight_s"] == pytest.approx(2.0)

    measurements.on_event(PushFailing(step=12, num_tries=1, reason="it is down"))
    assert math.isinf(measurements.figures()["in_flight_s"])
    assert measurements.decide(13, ahead(100.0), 0) == "leave"
    measurements.announce(13, ahead(100.0))
    assert [plan.choice for plan in told] == ["nothing_fits"]

    measurements.on_event(Committed(step=12, num_bytes=1000 * MB, push_s=60.0, put_bytes_per_s=100 * MB))
    assert measurements.figures()["in_flight_s"] == 0.0
    assert measurements.figures()["commit_s"] == pytest.approx(3.0), "waiting for a store that is down is no speed"


def test_nothing_is_promised_of_a_disk_that_has_failed(measurements):
    """
    Its speed is forgotten until it takes a copy again.
    """
    measurements.on_event(LocalWriteFailed(step=11, reason="it hangs"))
    assert measurements.figures()["disk_bytes_per_s"] is None

    measurements.on_event(WrittenLocally(step=12, num_bytes=1, write_s=1.0, write_bytes_per_s=7))
    assert measurements.figures()["disk_bytes_per_s"] == 7


def test_what_a_pause_holds_is_not_in_flight(measurements):
    """
    It is pushed only if a notice comes.
    """
    measurements.on_event(Staged(step=12, trigger="pause", num_bytes=1000 * MB, stall_s=0.001, copy_s=2.0))

    assert measurements.figures()["in_flight_s"] == 0.0


def test_the_slowest_rank_decides_and_its_push_goes_on(measurements, ahead, clock, told):
    """
    Another rank has five times the bytes in flight and half the speed: that counts, less the time since it said so.
    """
    other = {**measurements.figures(), "store_bytes_per_s": 50 * MB, "in_flight_s": 40.0}
    measurements.merge([measurements.figures(), other])
    clock.now += 10.0

    measurements.decide(12, ahead(100.0), 2)

    assert told[0].store_bytes_per_s == 50 * MB
    assert told[0].in_flight_s == pytest.approx(30.0)
    assert not told[0].save_first


def test_a_pause_is_no_step(measurements):
    """
    What lies between the steps before and behind it says nothing of how long a step takes.
    """
    measurements.on_pause()
    assert measurements.figures()["step_s"] is None
    measurements.on_step()
    assert measurements.figures()["step_s"] is None


def test_of_several_ranks_the_worst_in_each_respect_counts():
    """
    And what one rank does not know, nobody does; a disk that one rank lacks saves nobody.
    """
    one = Situation(
        left_s=100.0,
        step_s=1.0,
        num_bytes=10,
        stall_s=0.1,
        stage_bytes_per_s=5.0,
        disk_bytes_per_s=4.0,
        store_bytes_per_s=3.0,
        commit_s=0.2,
        disk_survives=True,
        in_flight_s=7.0,
        num_unsaved_steps=4,
        saved_since_notice=True,
    )
    other = Situation(
        left_s=90.0,
        step_s=2.0,
        num_bytes=20,
        stall_s=0.2,
        stage_bytes_per_s=4.0,
        disk_bytes_per_s=3.0,
        store_bytes_per_s=2.0,
        commit_s=0.3,
        disk_survives=False,
        in_flight_s=8.0,
        num_unsaved_steps=5,
        saved_since_notice=False,
    )

    assert slowest([one, other]) == slowest([other, one]) == other
    assert slowest([one]) == one
    assert slowest([one, replace(one, is_estimated=True)]).is_estimated
    blind = replace(one, step_s=None, num_bytes=None, stage_bytes_per_s=None, store_bytes_per_s=None)
    assert slowest([one, blind]) == blind
    no_disk = slowest([one, replace(one, disk_bytes_per_s=None)])
    assert (no_disk.disk_bytes_per_s, no_disk.disk_survives) == (4.0, False)
