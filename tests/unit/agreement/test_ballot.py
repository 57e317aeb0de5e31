"""
Every order in which three ranks can agree: none ends in a hang, none in two opinions.

The rules under test are those of the product (:mod:`spot_plugins.agreement.ballot`). What surrounds them is a model
of it: per rank a training thread and a background thread that move in small steps, and a board. A search visits every
state that some order of these moves reaches. Trainings are coupled as with DDP: no rank comes to the end of a step
that another has not begun.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import pytest

from spot_plugins.agreement.ballot import Ballot, Proposal, count_notice, count_proposal

NUM_RANKS = 3

# What the training thread does. In a pause it meets the others in a collective, between two chances to leave.
IN_STEP, AT_PAUSE, IN_PAUSE, IN_COLLECTIVE, BEHIND_COLLECTIVE, LEAVING_PAUSE, DONE = range(7)
# How far the background thread is with its message.
READING, COUNTING, WAITING, STUCK = range(4)


class Scenario(NamedTuple):
    """What can happen. When it happens is left open."""

    num_steps: int = 3
    notified: tuple[int, ...] = ()
    pause_at: int = 0
    num_plans: int = 0
    num_busy: int = 0
    """How many answers to proposals may be ``busy``."""


class Rank(NamedTuple):
    """One process. Its ballot is never changed: a move works on a copy."""

    ballot: Ballot
    training: int = IN_STEP
    background: int = READING
    message: int = 0
    saved: frozenset[int] = frozenset()
    left_at: int | None = None

    def key(self) -> tuple[Any, ...]:
        b = self.ballot
        proposals = tuple(sorted((at, plan.verdict or "") for at, plan in b.proposals.items()))
        ballot = (b.reached, b.paused, b.answer, b.leave_at, proposals)
        return (ballot, self.training, self.background, self.message, self.saved, self.left_at)


class Message(NamedTuple):
    """One note on the board, and what came of it: ``plan`` is None for a notice."""

    plan: int | None
    answers: tuple[tuple[int, Any], ...] = ()
    verdict: Any = None


class State(NamedTuple):
    ranks: tuple[Rank, ...]
    keys: tuple[Any, ...]
    to_notify: frozenset[int]
    num_plans: int
    num_busy: int
    messages: tuple[Message, ...] = ()
    latest: int | None = None
    """Once the first rank has heard of a notice: the last boundary at which all may leave."""

    def key(self) -> tuple[Any, ...]:
        return (self.keys, self.to_notify, self.num_plans, self.num_busy, self.messages, self.latest)

    def with_rank(self, number: int, ballot: Ballot, **changes: Any) -> State:
        rank = self.ranks[number]._replace(ballot=ballot, **changes)
        ranks, keys = list(self.ranks), list(self.keys)
        ranks[number], keys[number] = rank, rank.key()
        return self._replace(ranks=tuple(ranks), keys=tuple(keys))

    def with_message(self, number: int, **changes: Any) -> State:
        messages = list(self.messages)
        messages[number] = messages[number]._replace(**changes)
        return self._replace(messages=tuple(messages))


def copied(ballot: Ballot) -> Ballot:
    return type(ballot)(
        ballot.reached, ballot.paused, ballot.alone, dict(ballot.proposals), ballot.answer, ballot.leave_at
    )


class ViolationError(Exception):
    """The protocol broke a promise."""


class Model:
    """The moves that are possible in a state. A broken variant overrides one rule."""

    ballot: ClassVar[type[Ballot]] = Ballot
    count_proposal = staticmethod(count_proposal)
    count_notice = staticmethod(count_notice)

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario

    def start(self) -> State:
        ranks = tuple(Rank(self.ballot()) for _ in range(NUM_RANKS))
        scenario = self.scenario
        keys = tuple(rank.key() for rank in ranks)
        return State(ranks, keys, frozenset(scenario.notified), scenario.num_plans, scenario.num_busy)

    def moves(self, state: State) -> list[State]:
        """Return the states after each possible move of each thread."""
        nexts: list[State] = []
        for number, rank in enumerate(state.ranks):
            if rank.training != DONE:
                nexts += self.train(state, number)
            if rank.background != STUCK:
                nexts += self.follow(state, number)
            if number in state.to_notify:
                messages = (*state.messages, Message(plan=None))
                nexts.append(state._replace(messages=messages, to_notify=state.to_notify - {number}))
        return nexts

    def train(self, state: State, number: int) -> list[State]:
        rank, ranks = state.ranks[number], state.ranks
        ballot = copied(rank.ballot)
        reached = ballot.reached
        if rank.training == IN_STEP:
            if not self.has_gradients(state, number) or ballot.is_open(reached + 1):
                return []
            return self.arrive(state, number, ballot)
        if rank.training == AT_PAUSE:
            ballot.paused = True
            return [state.with_rank(number, ballot, training=IN_PAUSE)]
        if rank.training == IN_PAUSE:
            if ballot.leaves_at(reached):
                return [self.leave(state, number, ballot)]
            return [state.with_rank(number, ballot, training=IN_COLLECTIVE)]
        if rank.training == IN_COLLECTIVE:
            all_came = all(came_to_collective(other, reached) for other in ranks)
            return [state.with_rank(number, ballot, training=BEHIND_COLLECTIVE)] if all_came else []
        if rank.training == BEHIND_COLLECTIVE:
            ballot.paused = False
            return [state.with_rank(number, ballot, training=LEAVING_PAUSE)]
        if ballot.is_open(reached):
            return []
        if ballot.leaves_at(reached):
            return [self.leave(state, number, ballot)]
        return [state.with_rank(number, ballot, training=self.behind(reached))]

    def arrive(self, state: State, number: int, ballot: Ballot) -> list[State]:
        plan = None if ballot.pass_quietly() else ballot.arrive()
        boundary = ballot.reached
        if ballot.leaves_at(boundary):
            return [self.leave(state, number, ballot)]
        saved = state.ranks[number].saved
        if plan is not None and plan.verdict == "save":
            saved |= {boundary}
        training = AT_PAUSE if boundary == self.scenario.pause_at else self.behind(boundary)
        state = state.with_rank(number, ballot, training=training, saved=saved)
        return [state, *self.plan(state)] if number == 0 else [state]

    def behind(self, boundary: int) -> int:
        return DONE if boundary == self.scenario.num_steps else IN_STEP

    def plan(self, state: State) -> list[State]:
        """Return the states after each proposal that rank 0 may make where it is."""
        rank = state.ranks[0]
        if not state.num_plans or rank.training == DONE or rank.ballot.proposals or rank.ballot.answer is not None:
            return []
        nexts = []
        for ahead in (1, 2):
            ballot, boundary = copied(rank.ballot), rank.ballot.reached + ahead
            ballot.hear_proposal(boundary, Proposal("steps"))
            messages = (*state.messages, Message(plan=boundary))
            nexts.append(state.with_rank(0, ballot)._replace(messages=messages, num_plans=state.num_plans - 1))
        return nexts

    def leave(self, state: State, number: int, ballot: Ballot) -> State:
        rank = state.ranks[number]
        if rank.left_at not in (None, ballot.reached):
            raise ViolationError(f"rank {number} left at {rank.left_at} and at {ballot.reached}")
        saved = rank.saved | {ballot.reached}
        return state.with_rank(number, ballot, training=DONE, left_at=ballot.reached, saved=saved)

    def follow(self, state: State, number: int) -> list[State]:
        rank = state.ranks[number]
        if rank.message == len(state.messages):
            return []
        message = state.messages[rank.message]
        ballot = copied(rank.ballot)
        if rank.background == READING:
            return self.answer(state, number, message, ballot)
        if rank.background == COUNTING:
            if len(message.answers) < NUM_RANKS:
                return []
            answers = [answer for _, answer in message.answers]
            verdict = self.count_notice(answers) if message.plan is None else self.count_proposal(answers)
            counted = state.with_message(rank.message, verdict=verdict, answers=())
            return [counted.with_rank(number, ballot, background=WAITING)]
        if message.verdict is None:
            return []
        following = {"background": READING, "message": rank.message + 1}
        if message.plan is not None:
            ballot.hear_verdict(message.plan, message.verdict)
            return [state.with_rank(number, ballot, **following)]
        if ballot.hear_leave(message.verdict):  # it saves and waits for the others to end; it reads no more messages
            return [
                state.with_rank(
                    number, ballot, background=STUCK, left_at=ballot.reached, saved=rank.saved | {ballot.reached}
                )
            ]
        return [state.with_rank(number, ballot, **following)]

    def answer(self, state: State, number: int, message: Message, ballot: Ballot) -> list[State]:
        rank = state.ranks[number]
        background = COUNTING if number == 0 else WAITING
        if message.plan is not None:
            in_time = ballot.hear_proposal(message.plan, Proposal("steps"))
            answers = ["late"] if not in_time else ["ready", "busy"] if state.num_busy else ["ready"]
        elif ballot.answer is not None:  # of two notices the first one counts
            return [state.with_rank(number, ballot, message=rank.message + 1)]
        elif not self.may_answer(state, number):
            return []
        else:
            if all(other.ballot.answer is None for other in state.ranks):
                state = state._replace(latest=max(other.ballot.reached for other in state.ranks) + 2)
            answers = [ballot.hear_notice()]
        nexts = []
        for answer in answers:
            given = tuple(sorted((*message.answers, (number, answer))))
            answered = state.with_message(rank.message, answers=given)
            answered = answered._replace(num_busy=state.num_busy - (answer == "busy"))
            nexts.append(answered.with_rank(number, ballot, background=background))
        return nexts

    def may_answer(self, state: State, number: int) -> bool:
        return True

    def has_gradients(self, state: State, number: int) -> bool:
        """Return whether the training thread can come to the end of its step: all others have begun it."""
        return all(began_next(other, state.ranks[number].ballot.reached) for other in state.ranks)


def began_next(rank: Rank, reached: int) -> bool:
    """Return whether *rank* has begun the step behind the boundary *reached*, or a later one."""
    return rank.ballot.reached > reached or (rank.ballot.reached == reached and rank.training == IN_STEP)


def came_to_collective(rank: Rank, reached: int) -> bool:
    """Return whether *rank* is in, or past, the collective of the pause behind the boundary *reached*."""
    is_here = rank.ballot.reached == reached and rank.training in (IN_COLLECTIVE, BEHIND_COLLECTIVE, LEAVING_PAUSE)
    return is_here or began_next(rank, reached)


def check_end(state: State, num_steps: int) -> None:
    """Judge a state in which no thread can move."""
    ranks = state.ranks
    if not all(rank.training == DONE or rank.left_at is not None for rank in ranks):
        raise ViolationError(f"nobody can move, and not all are done: {state}")
    if len({rank.left_at for rank in ranks}) > 1:
        raise ViolationError(f"ranks left at different boundaries: {state}")
    if len({rank.saved for rank in ranks}) > 1:
        raise ViolationError(f"ranks saved different steps: {state}")
    left_at = ranks[0].left_at
    if state.latest is not None and (left_at or num_steps) > state.latest:
        raise ViolationError(f"the end came behind boundary {state.latest}: {state}")


class Walk(NamedTuple):
    num_states: int
    ends: set[tuple[int | None, frozenset[int]]]
    """Where all left, and what they saved."""


def walk(model: Model) -> Walk:
    """Visit every state that *model* can reach, and judge those where it ends."""
    to_visit = [model.start()]
    seen, ends = {to_visit[0].key()}, set()
    while to_visit:
        state = to_visit.pop()
        nexts = model.moves(state)
        if not nexts:
            check_end(state, model.scenario.num_steps)
            ends.add((state.ranks[0].left_at, state.ranks[0].saved))
        for following in nexts:
            key = following.key()
            if key not in seen:
                seen.add(key)
                to_visit.append(following)
    return Walk(len(seen), ends)


@pytest.mark.parametrize(
    ("scenario", "num_states"),
    [
        (Scenario(4, num_plans=2, num_busy=1), 9083),
        (Scenario(3, num_plans=2, num_busy=1, pause_at=1), 11607),
        (Scenario(3, (0, 1)), 7016),
        (Scenario(3, (1, 2), pause_at=2), 65210),
        (Scenario(3, (0, 1), num_plans=1), 97254),
        (Scenario(3, (1,), num_plans=2), 30696),
        (Scenario(3, (1,), num_plans=1, pause_at=2), 173957),
    ],
    ids=str,
)
def test_no_order_of_events_makes_ranks_hang_or_differ(scenario, num_states):
    """
    From every state that can be reached somebody can move on until all are done; all leave at one boundary, soon
    behind the notice, or none; and all saved the same. The number of states says that the walk was a whole one.
    """
    visited, ends = walk(Model(scenario))

    assert visited == num_states
    assert {left_at for left_at, _ in ends} >= {None} | ({1, scenario.num_steps} if scenario.notified else set())
    assert len({saved for _, saved in ends}) > 1, "it is not open whether anything is saved"


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
    """Rank 0 does not wait for the answers to its plan."""

    def follow(self, state, number):
        rank = state.ranks[number]
        if rank.background == COUNTING and state.messages[rank.message].plan is not None:
            state = state.with_message(rank.message, answers=((0, "ready"),) * NUM_RANKS)
        return super().follow(state, number)


class GoesPastItsAnswer(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return self.leave_at is None and boundary in self.proposals and self.proposals[boundary].verdict is None


class GoesPastPlans(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return self.leave_at is None and self.answer is not None and self.answer <= boundary


class PlansComeBeforeTheEnd(Model):
    """As it was before this walk: who leaves in a pause never answers a plan that others wait for."""

    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            is_planned = boundary in self.proposals and self.proposals[boundary].verdict is None
            return is_planned or Ballot.is_open(self, boundary)


class PauseEndsAtOnce(Model):
    class ballot(Ballot):  # noqa: N801
        def is_open(self, boundary):
            return boundary != self.reached and Ballot.is_open(self, boundary)


class NobodyLeavesForTheTrainingThread(Model):
    class ballot(Ballot):  # noqa: N801
        def hear_leave(self, boundary):
            Ballot.hear_leave(self, boundary)
            return False


class LatePlansStay(Model):
    class ballot(Ballot):  # noqa: N801
        def hear_verdict(self, boundary, verdict):
            if verdict != "late":
                Ballot.hear_verdict(self, boundary, verdict)


@pytest.mark.parametrize(
    ("broken", "scenario", "violation"),
    [
        (SmallestAnswerCounts, Scenario(3, (1,)), "nobody can move"),
        (AnswerNeedsTrainingThread, Scenario(3, (1,)), "nobody can move"),
        (GoesPastItsAnswer, Scenario(3, (1,)), "nobody can move"),
        (LateIsNoObjection, Scenario(3, num_plans=1), "saved different steps"),
        (EachForItself, Scenario(3, num_plans=1), "saved different steps"),
        (GoesPastPlans, Scenario(3, num_plans=1), "saved different steps"),
        (LatePlansStay, Scenario(3, num_plans=1), "nobody can move"),
        (PlansComeBeforeTheEnd, Scenario(3, (1,), num_plans=1, pause_at=2), "nobody can move"),
        (PauseEndsAtOnce, Scenario(2, (1,), pause_at=1), "nobody can move"),
        (NobodyLeavesForTheTrainingThread, Scenario(2, (1,), pause_at=1), "nobody can move"),
    ],
)
def test_the_walk_finds_what_is_broken(broken, scenario, violation):
    """With any one rule broken there is an order of events that breaks a promise, and the walk comes upon it."""
    with pytest.raises(ViolationError, match=violation):
        walk(broken(scenario))
