"""All ranks choose the same boundaries, whatever comes when. Ranks are threads; their trainings run in lockstep."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hearing import DEADLINE_S

from spot_plugins.agreement import Decision, Group, Notice, Solo, ballot, pace
from spot_plugins.clock import SystemClock
from spot_plugins.ranks import Job, MemoryBoard
from spot_plugins.schedule import PeriodicTrigger
from spot_plugins.testing import run_thread_ranks

NUM_STEPS = 24


@pytest.fixture(autouse=True)
def fast_steps(monkeypatch):
    """Steps take microseconds here: the lead of a proposal is counted in them alone."""
    monkeypatch.setattr(pace, "LEAD_S", 0.0)
    monkeypatch.setattr(pace, "MAX_LEAD_S", 0.001)


class Gradients:
    """Stands for the all-reduce of a step: nobody comes out before all went in. A rank that has left breaks it."""

    def __init__(self, world_size):
        self._barrier = threading.Barrier(world_size)

    def reduce(self):
        self._barrier.wait(DEADLINE_S)


class ManualClock(SystemClock):
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds


@dataclass
class Life:
    """The fate of one rank."""

    saves: list = field(default_factory=list)
    deferred: list = field(default_factory=list)
    left_at: int | None = None
    left_in_pause: bool = False


class Script:
    """A participant that decides what was written for the step, else trains on. Remembers what it was asked."""

    def __init__(self, rank, acts=(), *, ready=lambda rank: True, leave_in_pause=lambda: None):
        self.rank = rank
        self.acts = dict(acts)
        self.ready = ready
        self.leave_in_pause = leave_in_pause
        self.deferred = []
        self.asked = []
        self.merged = []

    def is_ready(self):
        return self.ready(self.rank)

    def on_deferred(self, step):
        self.deferred.append(step)

    def on_notice(self):
        pass

    def on_lost(self, loss):
        pass

    def figures(self):
        return {"rank": self.rank}

    def merge(self, figures):
        self.merged.append(figures)

    def decide(self, step, notice, num_ahead):
        assert self.merged or num_ahead == 0
        self.asked.append(step)
        return self.acts.get(step, "train")


class Training:
    """One rank's training thread, with a place to interfere at every point of a step."""

    def __init__(
        self, ranks, gradients, *, every_steps=None, every_seconds=None, pause_every=0, ready=lambda rank: True, acts=()
    ):
        self.rank = ranks.rank
        self.step = 0
        self.clock = ManualClock()
        self.pause_every = pause_every
        self.gradients = gradients
        self.stuck = threading.Event()
        self.participant = Script(self.rank, acts, ready=ready, leave_in_pause=self.leave_in_pause)
        self.life = Life(deferred=self.participant.deferred)
        job = Job(ranks, ranks.open_board())
        self.group = Group(job, PeriodicTrigger(every_steps, every_seconds, self.clock), self.participant)
        self.group.open()
        self.group.saved(0)

    def leave_in_pause(self):
        self.life.left_in_pause = True
        self.stuck.set()

    def notify(self, *, at_once=True):
        self.group.notify(Notice("test", time.monotonic() + DEADLINE_S, at_once=at_once))

    def wait_for_notice(self):
        deadline = time.monotonic() + DEADLINE_S
        while self.group.notice is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def run(self, num_steps=NUM_STEPS, at=lambda place, step: None):
        try:
            for self.step in range(1, num_steps + 1):
                at("before the step", self.step)
                self.gradients.reduce()
                at("after the gradients", self.step)
                if self.obey(self.group.at_boundary(self.step)):
                    return
                self.clock.seconds += 1
                at("at the boundary", self.step)
                if self.pause_every and self.step % self.pause_every == 0 and self.pause(at):
                    return
        finally:
            self.end()

    def pause(self, at):
        self.group.enter_pause()
        for _ in range(3):
            at("in the pause", self.step)
            if self.obey(self.group.in_pause()):
                return True
        if self.obey(self.group.exit_pause()):
            return True
        at("after the pause", self.step)
        return False

    def obey(self, decision):
        if decision is None:
            return False
        if decision.leaves:
            self.life.left_at = self.step
            return True
        self.life.saves.append((self.step, decision.trigger))
        self.group.saved(self.step)
        return False

    def end(self):
        self.gradients.reduce()  # as the session waits for the others before it closes
        self.group.close()


def train(world_size, at=lambda training, place, step: None, num_steps=NUM_STEPS, **settings):
    """Run the training on all ranks and return their lives."""
    gradients = Gradients(world_size)

    def body(ranks):
        training = Training(ranks, gradients, **settings)
        training.run(num_steps, lambda place, step: at(training, place, step))
        return training.life

    return run_thread_ranks(world_size, body, timeout_s=DEADLINE_S)


def assert_same(lives):
    """A rank that leaves in a pause may have saved that step already; the others save it as they leave."""
    saved = [{step for step, _ in life.saves} | {life.left_at} for life in lives]
    assert len({life.left_at for life in lives}) == 1, lives
    assert all(steps == saved[0] for steps in saved), lives


def until_answered(training, place, step):
    """Let a step take longer than the answers to all proposals. The other ranks need the gradients of rank 0."""
    if place == "before the step" and training.rank == 0:
        wait_until(lambda: all(each.verdict for each in list(training.group._ballot.proposals.values())))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("every_steps", [1, 3, 5])
def test_saves_on_steps_happen_at_the_same_boundaries(world_size, every_steps):
    """Every rank saves the same steps, about as often as was asked for, if a step takes longer than the answers."""
    lives = train(world_size, until_answered, every_steps=every_steps)

    assert_same(lives)
    assert len(lives[0].saves) >= NUM_STEPS // (every_steps + 8)


@pytest.mark.parametrize("world_size", [2, 4])
def test_saves_on_seconds_happen_at_the_same_boundaries(world_size):
    """Rank 0's clock decides for all; the clocks of the others do not matter."""

    def at(training, place, step):
        until_answered(training, place, step)
        if training.rank != 0 and place == "at the boundary":
            training.clock.seconds += 100

    lives = train(world_size, at, every_seconds=4, num_steps=80)

    assert_same(lives)
    assert [trigger for _, trigger in lives[0].saves].count("seconds") == len(lives[0].saves) >= 2


def test_steps_and_seconds_reset_each_other():
    """A save for one reason is one for the other: the distance is never below the smaller of the two."""
    lives = train(2, until_answered, every_steps=7, every_seconds=5, num_steps=80)

    steps = [0, *(step for step, _ in lives[0].saves)]
    assert len(steps) > 2
    assert min(after - before for before, after in itertools.pairwise(steps)) >= 5


@pytest.mark.parametrize("busy_rank", [0, 1, 2])
def test_one_busy_rank_defers_the_save_of_all(busy_rank):
    """While any rank's push is under way nobody saves, rank 0 says so once, and the save comes when it is done."""
    is_busy = threading.Event()
    is_busy.set()

    def at(training, place, step):
        until_answered(training, place, step)
        if place == "before the step" and step == 12:
            is_busy.clear()

    lives = train(3, at, every_steps=4, num_steps=400, ready=lambda rank: rank != busy_rank or not is_busy.is_set())

    assert_same(lives)
    assert 12 <= lives[0].saves[0][0] < 400
    assert [len(life.deferred) for life in lives] == [1, 0, 0], "one save was due, and rank 0 speaks for all"
    assert lives[0].deferred[0] >= 4


PLACES = ["before the step", "after the gradients", "at the boundary", "in the pause", "after the pause"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("who", ["rank 0", "rank 1", "all"])
def test_a_notice_anywhere_makes_all_leave_at_one_boundary(place, who):
    """Wherever the notified ranks are, and how many they are: all leave after one step, and soon."""
    notified = {"rank 0": {0}, "rank 1": {1}, "all": {0, 1, 2}}[who]

    def at(training, where, step):
        if where == place and step == 6 and training.rank in notified:
            training.notify()
            training.wait_for_notice()

    lives = train(3, at, pause_every=3)

    assert_same(lives)
    # Its own next boundary is 6 or 7. The other ranks may pass that one before they read of it, but not the next.
    assert lives[0].left_at in (6, 7, 8)


def test_a_rank_that_is_stuck_in_a_pause_is_told_to_end():
    """
    One rank leaves in the pause; the others wait there for it in a collective and can ask for nothing. Their own
    thread tells them.
    """
    gradients = Gradients(2)

    def body(ranks):
        training = Training(ranks, gradients)
        gradients.reduce()
        assert training.group.at_boundary(1) is None
        training.group.enter_pause()
        gradients.reduce()
        if ranks.rank == 0:
            training.notify()
        told = training.stuck.wait(DEADLINE_S)
        training.end()
        return told

    assert run_thread_ranks(2, body) == [True, True]


def test_a_pause_that_only_some_ranks_have_left_does_not_hold_them_up():
    """Rank 1 is training on when the notice comes. Rank 0, still in the pause, leaves a step later, as it does."""
    gradients = Gradients(2)
    trains_on = threading.Event()

    def body(ranks):
        training = Training(ranks, gradients)
        gradients.reduce()
        assert training.group.at_boundary(1) is None
        training.group.enter_pause()
        if ranks.rank == 1:
            assert training.group.exit_pause() is None
            trains_on.set()
            training.wait_for_notice()
        else:
            assert trains_on.wait(DEADLINE_S)
            training.notify()
            training.wait_for_notice()
            assert training.group.exit_pause() is None
        gradients.reduce()
        decision = training.group.at_boundary(2)
        training.end()
        return decision.trigger, training.life.left_in_pause

    assert run_thread_ranks(2, body) == [("notice", False)] * 2


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def knows_figures(training):
    wait_until(lambda: training.rank != 0 or training.participant.merged)


@pytest.mark.parametrize("notified", [0, 1, 2])
def test_a_notice_that_leaves_time_is_trained_through_until_rank_0_calls(notified):
    """
    Whoever has it: rank 0 learns what each rank has measured, is asked at each step from then on, has one step saved
    by all, and calls them to leave, which they do at the next boundary. Nothing else is saved meanwhile.
    """
    trainings = {}

    def at(training, place, step):
        trainings[training.rank] = training
        if (place, step) == ("before the step", 5):
            if training.rank == notified:
                training.notify(at_once=False)
            training.wait_for_notice()
            knows_figures(training)
        elif (place, step) == ("before the step", 9):
            proposals = training.group._ballot.proposals
            wait_until(lambda: 10 in proposals and proposals[10].verdict == "save")
        elif (place, step) == ("before the step", 16):
            wait_until(lambda: training.group._ballot.leave_at is not None)

    lives = train(3, at, every_steps=12, acts={8: "save", 15: "leave"})

    assert_same(lives)
    assert trainings[0].participant.merged == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]]
    assert lives[0].saves == [(10, "notice")]
    assert lives[0].left_at == 16
    first, *then = trainings[0].participant.asked
    assert first in (3, 4), "at the notice: rank 0 need not have come to the end of step 4"
    assert then[0] - first in (1, 2), "then at each boundary, except where it is being asked at the notice"
    assert not trainings[1].participant.asked


CUT = "a rank cuts it short"


@pytest.mark.parametrize("first", ["a signal comes after", CUT, "a pause comes", "the notice comes in a pause"])
def test_what_ends_the_time_that_a_notice_leaves(first):
    """
    A pause, in which all leave; another notice that leaves none, or a wish to leave, on any rank, obeyed soon.
    """

    def at(training, place, step):
        if (place, step) == ("in the pause" if first == "the notice comes in a pause" else "before the step", 6):
            if training.rank == 1:
                training.notify(at_once=False)
            training.wait_for_notice()
            knows_figures(training)
        if (place, step) == ("in the pause", 6):
            wait_until(lambda: training.group._ballot.leave_at is not None)
        if (place, step) == ("before the step", 8) and training.rank == 2:
            if first == CUT:
                assert training.group.cut_short()
            else:
                training.notify()
            wait_until(lambda: training.group.notice.at_once)
            assert not training.group.cut_short()
            assert (training.group._ballot.own_notice is None) == (first == CUT)

    goes_on = first in ("a signal comes after", CUT)
    lives = train(3, at, pause_every=0 if goes_on else 6)

    assert_same(lives)
    assert lives[0].left_at in ((8, 9, 10) if goes_on else (6,))


def interfere(rng):
    """Return a hook that makes random ranks wait a little, and notify, at random places."""
    notices = {
        (rng.randrange(4), rng.choice(PLACES), rng.randrange(1, NUM_STEPS))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 4]))
    }
    if rng.random() < 0.2:  # the machine's manager tells all at once
        place, step = rng.choice(PLACES), rng.randrange(1, NUM_STEPS)
        notices |= {(rank, place, step) for rank in range(4)}
    leaves_time = rng.random() < 0.4
    delays = [rng.randrange(4) for _ in range(97)]

    def at(training, place, step):
        if (training.rank, place, step) in notices:
            at_once = not leaves_time or step % 5 == 0
            if step % 2:
                training.notify(at_once=at_once)
            else:  # as from the thread of a signal
                threading.Thread(target=training.notify, kwargs={"at_once": at_once}).start()
        deadline = time.monotonic() + 1e-4 * max(0, delays[(training.rank * 31 + step * 7 + len(place)) % 97] - 1)
        while time.monotonic() < deadline:
            pass

    return at


@pytest.fixture
def hasty_threads():
    """Threads take turns a hundred times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.long
@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("hundred", range(3))
def test_no_schedule_makes_ranks_differ_or_hang(hundred):
    """Random trainings with random notices at random places: the same saves, the same end, and always an end."""
    ends = Counter()
    idle = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        rng = random.Random(seed)
        busy = {(rng.randrange(4), rng.randrange(40)) for _ in range(rng.choice([0, 0, 20]))}
        asked = Counter()

        def ready(rank, busy=busy, asked=asked):
            asked[rank] += 1
            return (rank, asked[rank]) not in busy

        lives = train(
            rng.choice([2, 2, 3, 4]),
            interfere(rng),
            every_steps=rng.choice([None, 1, 2, 5]),
            every_seconds=rng.choice([3, 4]),
            pause_every=rng.choice([0, 2, 3]),
            ready=ready,
            acts={rng.randrange(1, NUM_STEPS): act for act in ("save", "save", "leave")},
        )
        assert_same(lives)
        ends[lives[0].left_at] += 1
        idle += not lives[0].saves and lives[0].left_at is None
    assert len(ends) > 10, "the notices came everywhere"
    # Ranks may be busy, or past every proposed boundary, until so short a training ends; most are not.
    assert idle < 25


@pytest.mark.parametrize("notice_first", [False, True])
def test_ranks_that_lose_the_board_go_on_alone(notice_first, monkeypatch):
    """Rank 0 is gone, and the board with it: the others wait for nothing, and a notice makes each leave alone."""
    endless_s = 3600.0  # whoever waits that long does not end within the time of a test
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", endless_s)
    noticed = threading.Barrier(3)
    gone = threading.Event()

    def body(ranks):
        board = ranks.open_board()
        if ranks.rank == 0:  # takes no part, so that no notice is ever answered in full
            noticed.wait(DEADLINE_S)
            board.close()
            gone.set()
            return None
        trigger = PeriodicTrigger(1, None, SystemClock())
        group = Group(Job(ranks, board), trigger, Script(ranks.rank))
        group.open()
        notice = Notice("test", time.monotonic() + endless_s)
        if notice_first:
            group.notify(notice)
        noticed.wait(DEADLINE_S)
        assert gone.wait(DEADLINE_S)
        first = group.at_boundary(1)
        group._thread.join(DEADLINE_S)  # it has seen that the board is gone
        if not notice_first:
            assert first is None
            group.notify(notice)
        second = group.at_boundary(2)
        group.close()
        return (second or first).trigger

    assert run_thread_ranks(3, body)[1:] == ["notice", "notice"]


class DeafBoard(MemoryBoard):
    """Takes notes, and is gone before anybody could read one."""

    def read(self, name, timeout_s=None):
        return super().read("what nobody writes", timeout_s)


def test_a_notice_that_nobody_heard_before_the_board_was_lost_still_counts():
    """Its own thread had not read it back yet: the notified rank leaves all the same."""
    board = DeafBoard()

    class Ranks:
        rank, world_size = 1, 2

    trigger = PeriodicTrigger(1, None, SystemClock())
    group = Group(Job(Ranks(), board), trigger, Script(1))
    group.open()
    group.notify(Notice("test", time.monotonic() + DEADLINE_S))
    assert group.at_boundary(1) is None, "it may yet be agreed on"
    board.close()
    group._thread.join(DEADLINE_S)

    assert group.at_boundary(2).leaves
    group.close()


@pytest.fixture
def solo():
    """Make a Solo with a clock of its own, and what it reports."""

    def make(every_steps=None, every_seconds=None, ready=lambda: True):
        clock = ManualClock()
        script = Script(0, {3: "save", 5: "leave"}, ready=lambda rank: ready())
        return Solo(PeriodicTrigger(every_steps, every_seconds, clock), script), clock, script.deferred

    return make


def test_one_rank_saves_exactly_when_due(solo):
    """Alone there is nobody to ask: steps are saved at the very step."""
    agreement, _, _ = solo(every_steps=3)

    saves = []
    for step in range(1, 10):
        if agreement.at_boundary(step) is not None:
            saves.append(step)
            agreement.saved(step)

    assert saves == [3, 6, 9]


def test_one_rank_defers_once_and_saves_when_it_can(solo):
    """One report per save that was due, however long the push takes."""
    pushing = threading.Event()
    pushing.set()
    agreement, clock, deferred = solo(every_seconds=2, ready=lambda: not pushing.is_set())

    clock.seconds = 2
    assert [agreement.at_boundary(step) for step in (1, 2, 3)] == [None] * 3
    assert deferred == [1]
    pushing.clear()
    assert agreement.at_boundary(4).trigger == "seconds"
    agreement.saved(4)
    pushing.set()
    clock.seconds = 4
    assert agreement.at_boundary(5) is None
    assert deferred == [1, 5]


def test_one_rank_leaves_at_the_next_boundary_or_in_a_pause(solo):
    """A notice comes first, before what was planned; of several the one that ends first counts."""
    agreement, _, _ = solo(every_steps=1)
    assert agreement.in_pause() is None

    agreement.notify(Notice("first", 1.0))
    agreement.notify(Notice("later", 2.0))

    assert agreement.at_boundary(1).leaves
    assert agreement.in_pause().leaves
    assert agreement.exit_pause().leaves
    assert agreement.notice.source == "first"
    agreement.notify(Notice("sooner", 0.5))
    assert agreement.notice.source == "sooner"


def test_one_rank_does_what_its_participant_decides_until_there_is_no_time(solo):
    """
    It trains on, saves, and leaves at the very step; in a pause it leaves; a signal after that is obeyed at once.
    """
    agreement, _, _ = solo(every_steps=1)
    agreement.notify(Notice("patient", 1.0, at_once=False))

    assert [agreement.at_boundary(step) for step in (1, 2)] == [None, None]
    assert agreement.at_boundary(3) == Decision("notice", leaves=False)
    assert agreement.at_boundary(4) is None
    assert agreement.in_pause().leaves
    assert agreement.at_boundary(5).leaves
    agreement.notify(Notice("signal", 2.0))
    assert agreement.notice == Notice("patient", 1.0, at_once=True)
    assert agreement.at_boundary(6).leaves


def test_one_rank_that_cuts_the_time_short_leaves_at_the_next_boundary(solo):
    agreement, _, _ = solo()
    assert not agreement.cut_short()
    agreement.notify(Notice("patient", 1.0, at_once=False))

    assert agreement.at_boundary(1) is None
    assert agreement.cut_short()
    assert not agreement.cut_short()
    assert agreement.at_boundary(2).leaves


def test_one_rank_that_shall_save_soon_does_so_once_when_it_can(solo):
    """At its next boundary; or, while it is busy, at the first one after that. Once."""
    pushing = threading.Event()
    pushing.set()
    agreement, _, deferred = solo(ready=lambda: not pushing.is_set())
    agreement.save_soon()

    assert agreement.at_boundary(1) is None
    pushing.clear()
    assert agreement.at_boundary(2).trigger == "soft"
    agreement.saved(2)
    assert agreement.at_boundary(3) is None
    assert deferred == [1]
