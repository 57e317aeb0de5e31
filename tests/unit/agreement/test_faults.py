"""A board that talks nonsense, a rank that never answers, and errors of the training: nobody waits without a limit."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from hearing import DEADLINE_S

from spot_plugins.agreement import Group, Notice, Solo, ballot
from spot_plugins.clock import SystemClock
from spot_plugins.ranks import Job, MemoryBoard
from spot_plugins.schedule import PeriodicTrigger

ENDLESS_S = 3600.0  # whoever waits that long does not end within the time of a test


class Participant:
    """A training that trains on until it is told to leave. Remembers how it was asked to leave."""

    def __init__(self):
        self.merged = []
        self.decisions = []

    def is_ready(self):
        return True

    def on_deferred(self, step):
        pass

    def on_notice(self):
        pass

    def on_lost(self, loss):
        pass

    def leave_in_pause(self):
        pass

    def figures(self):
        return {}

    def merge(self, figures):
        self.merged.append(figures)
        if any(each != {} for each in figures):
            raise TypeError("these are no measurements")

    def decide(self, step, notice, num_ahead):
        self.decisions.append(step)
        return "train"


class Ranks:
    def __init__(self, rank, world_size=2):
        self.rank = rank
        self.world_size = world_size


class WatchedBoard(MemoryBoard):
    """Says which notes were asked for. Has other notes than were written under the names in ``garbled``."""

    def __init__(self):
        super().__init__()
        self.asked = set()
        self.garbled = {}
        self._changed = threading.Condition()

    def read(self, name, timeout_s=None):
        with self._changed:
            self.asked.add(name)
            self._changed.notify_all()
        return super().read(name, timeout_s)

    def post(self, name, value):
        super().post(name, self.garbled.get(name, value))

    def wait_asked(self, name):
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.asked, DEADLINE_S), name


@pytest.fixture
def board():
    board = WatchedBoard()
    yield board
    board.close()


@pytest.fixture
def open_group(board):
    """Open the group of one rank of two. The other rank is the test, which writes to the board as it likes."""
    groups = []

    def make(rank, participant=None, every_steps=None):
        trigger = PeriodicTrigger(every_steps, None, SystemClock())
        group = Group(Job(Ranks(rank), board), trigger, participant or Participant())
        groups.append(group)
        group.open()
        return group

    yield make
    board.close()
    for group in groups:
        group.close()


def wait_ended(group):
    group._thread.join(DEADLINE_S)
    assert not group._thread.is_alive()


def patient(left_s=DEADLINE_S):
    return Notice("test", time.monotonic() + left_s, at_once=False)


def notice_note(**changes):
    return {"kind": "notice", "source": "other", "left_s": DEADLINE_S, "margin_s": 0.0, "at_once": True} | changes


RUBBISH = [
    None,
    17,
    "rubbish",
    ["message"],
    {"kind": "plan"},
    {"kind": "proposal"},
    {"kind": "notice", "left_s": "soon"},
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("rubbish", RUBBISH, ids=repr)
def test_a_message_that_is_rubbish_is_a_lost_board_said_once(open_group, board, caplog, monkeypatch, rank, rubbish):
    """No boundary waits afterwards, and a notice is obeyed at the next one."""
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", ENDLESS_S)
    group = open_group(rank, every_steps=2)
    board.take_number("messages")
    board.post("message/1", rubbish)
    wait_ended(group)

    with caplog.at_level(logging.ERROR):
        assert [group.at_boundary(step) for step in range(1, 6)] == [None] * 5

    assert len([record for record in caplog.records if "can no longer agree" in record.message]) == 1
    group.notify(patient(ENDLESS_S))
    assert group.at_boundary(6).leaves


@pytest.mark.parametrize("rubbish", [None, 17, "maybe", {"ready": True}], ids=repr)
def test_an_answer_that_is_rubbish_is_a_lost_board_for_all(open_group, board, monkeypatch, rubbish):
    """Rank 0, which reads the answers, gives a verdict that is none. So the others do not wait for one either."""
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", ENDLESS_S)
    board.garbled["answer/1/1"] = rubbish
    other = open_group(1)
    leader = open_group(0, every_steps=1)

    leader.saved(0)

    wait_ended(leader)
    wait_ended(other)
    for group in (leader, other):
        assert [group.at_boundary(step) for step in (1, 2, 3)] == [None] * 3


@pytest.mark.parametrize("rubbish", [None, "late!", -3, True], ids=repr)
def test_a_verdict_that_is_rubbish_is_a_lost_board(open_group, board, rubbish):
    """A rank that waits at its boundary for it goes on, and leaves because of the notice."""
    group = open_group(1)
    board.take_number("messages")
    board.post("message/1", notice_note())
    board.wait_asked("verdict/1")
    left = []
    training = threading.Thread(target=lambda: left.append(group.at_boundary(1)), daemon=True)
    training.start()

    board.post("verdict/1", rubbish)

    training.join(DEADLINE_S / 2)
    assert left[0].leaves
    wait_ended(group)


@pytest.mark.parametrize("figures", [None, "fast", [1]], ids=repr)
def test_measurements_that_are_rubbish_make_all_leave_at_once(open_group, board, figures, caplog):
    """A rate that is not known is not planned with."""
    participant = Participant()
    group = open_group(0, participant)
    group.notify(patient())
    board.post("figures/1/1", figures)

    assert board.read("message/2", DEADLINE_S) == {"kind": "leave"}
    board.post("answer/2/1", 1)
    assert board.read("verdict/2", DEADLINE_S) == 1
    assert group.at_boundary(1).leaves
    assert participant.decisions == []
    assert "the measurements of the ranks are not known, so all leave at once: " in caplog.text


def test_measurements_that_never_come_make_all_leave_at_once(open_group, board, monkeypatch):
    """The rank that does not post them may still answer the call. If not, the wait at a boundary has its own limit."""
    monkeypatch.setattr("spot_plugins.agreement.group.VERDICT_WAIT_S", 0.05)
    group = open_group(0)
    group.notify(patient())

    assert board.read("message/2", DEADLINE_S) == {"kind": "leave"}
    board.post("answer/2/1", 4)
    assert board.read("verdict/2", DEADLINE_S) == 4
    assert [group.at_boundary(step) for step in (1, 2, 3)] == [None] * 3
    assert group.at_boundary(4).leaves


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_notified_rank_leaves_alone_if_its_time_is_over(open_group, board, monkeypatch, rank, at_once):
    """The other rank answers nothing, and gives no verdict. At a boundary or in a pause, a notice is obeyed."""
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", 0.05)
    group = open_group(rank)
    group.notify(Notice("test", time.monotonic() + 0.1, at_once=at_once))
    started = time.monotonic()

    step, decision = 0, None
    while decision is None and time.monotonic() - started < DEADLINE_S:
        step += 1
        decision = group.at_boundary(step)

    assert decision.leaves
    assert group.notice.source == "test"


def test_a_notice_that_nobody_reads_is_obeyed_in_a_pause(open_group, board, monkeypatch):
    """Even this rank's own thread is held up, by a vote that never ends."""
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", 0.05)
    group = open_group(1)
    board.take_number("messages")
    board.post("message/1", {"kind": "proposal", "boundary": 9, "trigger": "steps"})
    board.wait_asked("verdict/1")
    assert group.at_boundary(1) is None
    group.enter_pause()
    group.notify(Notice("test", time.monotonic() + 0.1))
    started = time.monotonic()

    decision = None
    while decision is None and time.monotonic() - started < DEADLINE_S:
        decision = group.in_pause()

    assert decision.leaves
    assert group.exit_pause().leaves
    assert group.notice.source == "test"


def test_a_verdict_that_never_comes_is_waited_for_once_for_each_proposal(open_group, board, monkeypatch, caplog):
    """Nothing is saved there, and training continues. The log says so."""
    monkeypatch.setattr(ballot, "VERDICT_WAIT_S", 0.05)
    group = open_group(1)
    board.take_number("messages")
    board.post("message/1", {"kind": "proposal", "boundary": 1, "trigger": "steps"})
    board.wait_asked("verdict/1")

    assert [group.at_boundary(step) for step in (1, 2, 3)] == [None] * 3
    told = "a rank does not answer, so boundary 1 is decided without it. Look at the logs of the other ranks"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_an_error_of_the_training_ends_the_agreement_and_no_boundary_waits(open_group, board, caplog):
    """The thread does not die in silence: it says why nothing is saved any more."""

    class Broken(Participant):
        def is_ready(self):
            raise RuntimeError("the disk is on fire")

    group = open_group(1, Broken())
    board.take_number("messages")
    board.post("message/1", {"kind": "proposal", "boundary": 1, "trigger": "steps"})
    wait_ended(group)

    with caplog.at_level(logging.ERROR):
        assert group.at_boundary(1) is None

    assert "the ranks can no longer agree, so nothing will be saved from now on: " in caplog.text
    group.notify(Notice("test", time.monotonic() + DEADLINE_S))
    assert group.at_boundary(2).leaves


def test_a_call_to_leave_without_a_notice_is_ignored(open_group, board):
    """There would be no deadline to leave by."""
    group = open_group(1)
    board.take_number("messages")
    board.post("message/1", {"kind": "leave"})
    board.wait_asked("message/2")

    assert group.at_boundary(1) is None


def test_nothing_starts_before_it_is_opened():
    """Making an agreement takes no thread and no note, and closing it needs no opening."""
    board = WatchedBoard()
    threads = threading.active_count()
    trigger = PeriodicTrigger(1, None, SystemClock())

    group = Group(Job(Ranks(0), board), trigger, Participant())
    solo = Solo(trigger, Participant())

    assert threading.active_count() == threads
    assert not board.asked
    group.close()
    solo.close()
