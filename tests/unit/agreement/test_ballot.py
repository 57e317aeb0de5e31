"""No order in which three ranks can agree ends in a hang, or in two opinions. The model is tests/ballot_model.py."""

from __future__ import annotations

import math

import pytest
from ballot_model import COUNTING, DONE, NUM_RANKS, Model, Scenario, ViolationError, walk

from spot_plugins.agreement.ballot import Ballot, Stage, count_proposal

pytestmark = pytest.mark.long  # walks through every state of small jobs

AT_ONCE, PATIENT, EARLIER = "at once", "patient", "earlier"

SOUND = [
    (Scenario(4, num_saves=2, num_busy=1), 5832),
    (Scenario(3, num_saves=2, num_busy=1, pause_at=1), 6832),
    (Scenario(3, ((0, AT_ONCE), (1, AT_ONCE))), 9395),
    (Scenario(2, ((1, AT_ONCE),), pause_at=1), 12726),
    (Scenario(3, ((1, AT_ONCE),), num_saves=1), 20727),
    (Scenario(2, ((1, PATIENT),), pause_at=1), 15783),
    (Scenario(2, ((1, PATIENT),), num_saves=1), 10796),
    (Scenario(2, ((1, PATIENT), (2, AT_ONCE))), 14375),
    (Scenario(2, ((1, PATIENT), (2, EARLIER))), 13408),
]
LOST = [
    (Scenario(2, num_saves=1, loses=True), 2077),
    (Scenario(2, ((1, AT_ONCE),), loses=True), 9450),
    (Scenario(2, ((1, PATIENT),), loses=True), 12514),
]
SILENT = [
    (Scenario(2, num_saves=1, silent=0), 97),
    (Scenario(2, ((1, AT_ONCE),), num_saves=1, silent=2), 1889),
    (Scenario(2, ((1, AT_ONCE),), silent=0), 313),
    (Scenario(2, ((1, AT_ONCE),), silent=1), 361),
    (Scenario(2, ((1, PATIENT),), silent=0), 249),
    (Scenario(2, ((1, PATIENT),), silent=1), 1437),
    (Scenario(2, ((1, PATIENT),), num_saves=1, silent=1), 8397),
    (Scenario(2, ((1, PATIENT),), silent=2, pause_at=1), 12200),
    (Scenario(2, ((1, PATIENT), (2, AT_ONCE)), silent=0), 2419),
    (Scenario(2, ((1, PATIENT), (2, AT_ONCE)), silent=2), 7635),
]
SOAK = [
    (Scenario(3, ((1, AT_ONCE), (2, AT_ONCE)), pause_at=2), 47339),
    (Scenario(3, ((1, PATIENT), (2, AT_ONCE)), num_saves=1), 375971),
    (Scenario(2, ((0, PATIENT), (2, EARLIER)), pause_at=1), 203079),
    (Scenario(2, ((1, PATIENT), (2, AT_ONCE)), pause_at=1), 210532),
    (Scenario(2, ((1, PATIENT),), num_saves=1, pause_at=1), 172989),
    (Scenario(3, ((0, AT_ONCE), (1, AT_ONCE)), num_saves=1), 146163),
    (Scenario(3, ((1, AT_ONCE),), num_saves=1, pause_at=2), 205900),
    (Scenario(2, ((1, PATIENT), (2, AT_ONCE)), loses=True), 155115),
    (Scenario(2, ((1, AT_ONCE),), num_saves=1, loses=True), 107391),
    (Scenario(2, ((1, PATIENT),), pause_at=1, loses=True), 289414),
]


@pytest.mark.parametrize(("scenario", "num_states"), SOUND, ids=str)
def test_no_order_of_events_makes_ranks_hang_or_differ(scenario, num_states):
    """
    From every state that can be reached somebody can move on until all are done; all leave at one boundary, soon
    after the notice or the call, or none; and all saved the same. A reason to leave is never forgotten.

    The number of states says that the walk was a whole one.
    """
    visited, ends = walk(Model(scenario))

    assert visited == num_states
    assert {left_at for left_at, _ in ends} >= {None} | ({1, scenario.num_steps} if scenario.notices else set())
    assert len({saved for _, saved in ends}) > 1, "it is not open whether anything is saved"


@pytest.mark.parametrize(("scenario", "num_states"), LOST, ids=str)
def test_ranks_that_lose_the_board_at_any_moment_wait_for_nobody_and_obey_their_notice(scenario, num_states):
    """A rank that knows of the lost board leaves at its next boundary, or where all had agreed. It never waits."""
    visited, _ = walk(Model(scenario))

    assert visited == num_states


@pytest.mark.parametrize(("scenario", "num_states"), SILENT, ids=str)
def test_a_rank_that_never_answers_holds_up_the_others_for_a_limited_time(scenario, num_states):
    """Every wait ends, and whoever knows of a notice leaves at the first boundary after its deadline at the latest."""
    visited, _ = walk(Model(scenario))

    assert visited == num_states


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("scenario", "num_states"), SOAK, ids=str)
def test_larger_worlds_hold_no_surprise(scenario, num_states):
    """The promises of the tests above, where more can happen at once."""
    visited, _ = walk(Model(scenario))

    assert visited == num_states


# Below, each class breaks one rule.


class SmallestAnswerCounts(Model):
    count_notice = staticmethod(min)


class LateIsNoObjection(Model):
    @staticmethod
    def count_proposal(answers):
        return count_proposal(answer for answer in answers if answer != "late")


class AnswerNeedsTrainingThread(Model):
    """A rank answers a notice only when its training thread has come to the end of a step."""

    def may_answer(self, state, number):
        return state.ranks[number].training == DONE or self.has_gradients(state, number)


class EachForItself(Model):
    """Rank 0 does not wait for the answers to its proposal."""

    def follow(self, state, number):
        rank = state.ranks[number]
        if rank.background == COUNTING and state.messages[rank.message].kind == "proposal":
            state = state.with_message(rank.message, answers=((0, "ready"),) * NUM_RANKS)
        return super().follow(state, number)


class GoesPastItsAnswer(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return self.leave_at is None and boundary in self.proposals and self.proposals[boundary].verdict is None


class GoesPastProposals(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return self.leave_at is None and self.answer is not None and self.answer <= boundary


class ProposalsComeBeforeTheEnd(Model):
    """As it was before this walk: who leaves in a pause never answers a proposal that others wait for."""

    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            is_proposed = boundary in self.proposals and self.proposals[boundary].verdict is None
            return is_proposed or Ballot.is_open(self, boundary)


class PauseEndsAtOnce(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return boundary != self.reached and Ballot.is_open(self, boundary)


class NobodyLeavesForTheTrainingThread(Model):
    class ballot(Ballot):  # noqa: N801
        def on_leave(self, boundary):
            Ballot.on_leave(self, boundary)
            return False


class LateProposalsStay(Model):
    class ballot(Ballot):  # noqa: N801
        def on_verdict(self, boundary, verdict):
            if verdict != "late":
                Ballot.on_verdict(self, boundary, verdict)


class FirstNoticeCounts(Model):
    """A notice that is to be obeyed at once is not, if one that leaves time came before."""

    class ballot(Ballot):  # noqa: N801
        def on_notice(self, notice, now):
            return "nothing" if self.notice is not None else Ballot.on_notice(self, notice, now)


class AnswersEachCall(Model):
    """A rank answers again, with where it is now, if another notice or call comes."""

    class ballot(Ballot):  # noqa: N801
        def on_call(self):
            self.answer = self.leave_at = None
            return Ballot.on_call(self)


class PauseCallsNobody(Model):
    """A pause that begins after a notice that leaves time does not end the wait."""

    class ballot(Ballot):  # noqa: N801
        def enter_pause(self):
            self.paused = True
            return False


class PauseIsForgotten(Model):
    """Nor does a pause in which such a notice comes."""

    class ballot(Ballot):  # noqa: N801
        def on_act(self, act):
            paused, self.paused = self.paused, False
            calls = Ballot.on_act(self, act)
            self.paused = paused
            return calls


class AnswersWithThePassedBoundary(Model):
    class ballot(Ballot):  # noqa: N801
        def on_call(self):
            paused, self.paused = self.paused, True
            duty = Ballot.on_call(self)
            self.paused = paused
            return duty


class ForgetsItsNoticeWithTheBoard(Model):
    class ballot(Ballot):  # noqa: N801
        def lose_board(self):
            self.own_notice = None
            Ballot.lose_board(self)


class WaitsWithoutABoard(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            alone, self.alone = self.alone, False
            is_open = Ballot.is_open(self, boundary)
            self.alone = alone
            return is_open


class ObeysNobodyAlone(Model):
    class ballot(Ballot):  # noqa: N801
        def notify(self, notice, now):
            return False if self.alone else Ballot.notify(self, notice, now)


class WaitsForEver(Model):
    class ballot(Ballot):  # noqa: N801
        def wait_until(self, started):
            return math.inf


class IsNeverOverdue(Model):
    class ballot(Ballot):  # noqa: N801
        def is_overdue(self, now):
            return False


class StaysAfterTheDeadline(Model):
    class ballot(Ballot):  # noqa: N801
        def give_up(self, boundary, now):
            self.proposals.pop(boundary, None)


class QuietUntilReadBack(Model):
    """A rank does nothing about its own notice before it has read that back."""

    class ballot(Ballot):  # noqa: N801
        def notify(self, notice, now):
            is_news = Ballot.notify(self, notice, now)
            if self.stage is Stage.SENT:
                self.stage = Stage.QUIET
            return is_news


@pytest.mark.parametrize(
    ("broken", "scenario", "violation"),
    [
        (SmallestAnswerCounts, Scenario(3, ((1, AT_ONCE),)), "nobody can move"),
        (AnswerNeedsTrainingThread, Scenario(3, ((1, AT_ONCE),)), "nobody can move"),
        (AnswersWithThePassedBoundary, Scenario(2, ((1, AT_ONCE),)), "nobody can move"),
        (GoesPastItsAnswer, Scenario(3, ((1, AT_ONCE),)), "nobody can move"),
        (LateIsNoObjection, Scenario(3, num_saves=1), "saved different steps"),
        (EachForItself, Scenario(3, num_saves=1), "saved different steps"),
        (GoesPastProposals, Scenario(3, num_saves=1), "saved different steps"),
        (LateProposalsStay, Scenario(3, num_saves=1), "nobody can move"),
        (ProposalsComeBeforeTheEnd, Scenario(3, ((1, AT_ONCE),), num_saves=1, pause_at=2), "nobody can move"),
        (PauseEndsAtOnce, Scenario(2, ((1, AT_ONCE),), pause_at=1), "nobody can move"),
        (NobodyLeavesForTheTrainingThread, Scenario(2, ((1, AT_ONCE),), pause_at=1), "nobody can move"),
        (FirstNoticeCounts, Scenario(2, ((1, PATIENT), (2, AT_ONCE))), "nobody was called to leave"),
        (AnswersEachCall, Scenario(2, ((1, PATIENT), (2, AT_ONCE))), "nobody can move"),
        (PauseCallsNobody, Scenario(2, ((1, PATIENT),), pause_at=1), "nobody was called to leave"),
        (PauseIsForgotten, Scenario(2, ((1, PATIENT),), pause_at=1), "nobody was called to leave"),
        (ForgetsItsNoticeWithTheBoard, Scenario(2, ((1, AT_ONCE),), loses=True), "does not obey"),
        (ObeysNobodyAlone, Scenario(2, ((1, AT_ONCE),), loses=True), "does not obey"),
        (WaitsWithoutABoard, Scenario(2, num_saves=1, loses=True), "nobody can move"),
        (WaitsForEver, Scenario(2, ((1, AT_ONCE),), silent=2), "nobody can move"),
        (WaitsForEver, Scenario(2, num_saves=1, silent=2), "nobody can move"),
        (StaysAfterTheDeadline, Scenario(2, ((1, AT_ONCE),), silent=2), "does not obey"),
        (IsNeverOverdue, Scenario(2, ((1, PATIENT),), silent=1), "does not obey"),
        (IsNeverOverdue, Scenario(2, ((1, AT_ONCE),), silent=0), "does not obey"),
        (QuietUntilReadBack, Scenario(2, ((1, AT_ONCE),), silent=1), "does not obey"),
    ],
)
def test_the_walk_finds_what_is_broken(broken, scenario, violation):
    """With any one rule broken there is an order of events that breaks a promise, and the walk comes upon it."""
    with pytest.raises(ViolationError, match=violation):
        walk(broken(scenario))
