"""
Every order in which three ranks can agree, for tests/unit/agreement/test_ballot.py.

The rules under test are those of the product (:mod:`spot_plugins.agreement.ballot`). What surrounds them is a model of
:mod:`spot_plugins.agreement.group`. Each rank has a training thread and a background thread that move in small steps.
Messages wait in an outbox, and reach the board in any order. A search visits every state that some order of these moves
reaches. Trainings are coupled as with DDP: no rank comes to the end of a step that another has not begun.

Two faults can be part of a scenario. The board may be lost at any moment, and each rank learns it at a moment of
its own. A rank may be silent: its training continues, and its background thread never moves. Only with a silent rank
does time pass: waits reach their limits, and at some moment the deadline is over. Otherwise a wait is a hang.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from spot_plugins.agreement.ballot import Ballot, count_notice, count_proposal
from spot_plugins.agreement.notice import Notice

NUM_RANKS = 3

# What the training thread does. In a pause it meets the others in a collective, between two chances to leave.
IN_STEP, WISHING, AT_PAUSE, IN_PAUSE, IN_COLLECTIVE, AFTER_COLLECTIVE, LEAVING_PAUSE, DONE = range(8)
# How far the background thread is with its message. GONE: it has learned that the board is lost.
READING, SHARING, COUNTING, WAITING, STUCK, GONE, SILENT = range(7)

# Seconds on everybody's clock: at the start, when a wait for a verdict is over, when the notice is.
AT_START, AFTER_WAIT, AFTER_DEADLINE = 0.0, 50.0, 2000.0
NOTICES = {
    "at once": Notice("test", 1000.0),
    "patient": Notice("test", 1000.0, at_once=False),
    "earlier": Notice("test", 900.0, at_once=False),
}


class Scenario(NamedTuple):
    """Things that can happen, at any time."""

    num_steps: int = 3
    notices: tuple[tuple[int, str], ...] = ()
    """Ranks that get a notice, and which."""
    pause_at: int = 0
    num_saves: int = 0
    """Number of saves that rank 0 may wish for."""
    num_busy: int = 0
    """Number of answers to proposals that may be ``busy``."""
    loses: bool = False
    """True if the board may be lost."""
    silent: int | None = None
    """The rank whose background thread never moves."""

    @property
    def is_sound(self) -> bool:
        return not self.loses and self.silent is None


class Rank(NamedTuple):
    """One process. Its ballot is never changed: a move works on a copy."""

    ballot: Ballot
    training: int = IN_STEP
    background: int = READING
    message: int = 0
    saved: frozenset[int] = frozenset()
    left_at: int | None = None
    wish: tuple[int, Any] | str | None = None
    is_noticed: bool = False
    """True if it got a notice, or read one."""

    def key(self) -> tuple[Any, ...]:
        b = self.ballot
        proposals = tuple(sorted((at, each.verdict or "") for at, each in b.proposals.items())) if b.proposals else ()
        ballot = (
            (b.reached, b.paused, b.alone, b.stage.value, key_of(b.notice), key_of(b.own_notice)),
            (b.answer, b.leave_at, proposals),
        )
        return (ballot, self[1:])


def key_of(notice: Notice | None) -> float:
    return 0.0 if notice is None else notice.deadline + notice.at_once


class Message(NamedTuple):
    """One note on the board, and what came of it."""

    kind: str
    content: Any = None
    """The boundary of a proposal, the name of a notice."""
    answers: tuple[tuple[int, Any], ...] = ()
    verdict: Any = None


class State(NamedTuple):
    ranks: tuple[Rank, ...]
    keys: tuple[Any, ...]
    to_notify: tuple[tuple[int, str], ...]
    num_saves: int
    num_busy: int
    outbox: tuple[Message, ...] = ()
    messages: tuple[Message, ...] = ()
    latest: int | None = None
    """Once the first rank has answered a notice or a call: the last boundary at which all may leave."""
    must_leave: bool = False
    """True if there is a reason for all to leave: a notice that is obeyed at once, rank 0's decision, or a pause."""
    is_lost: bool = False
    is_over: bool = False
    """True if the deadline of the notice is over."""

    def key(self) -> tuple[Any, ...]:
        """Return what tells this state from others. Ranks 1 and 2 follow the same rules, so they may be exchanged."""
        first, *others = (
            (
                self.keys[number],
                tuple([kind for rank, kind in self.to_notify if rank == number]),
                tuple([answer for each in self.messages for rank, answer in each.answers if rank == number]),
            )
            for number in range(NUM_RANKS)
        )
        others.sort(key=repr)
        messages = tuple([(each.kind, each.content, each.verdict) for each in self.messages])
        return (first, tuple(others), messages, self[3:6], self[7:])

    def with_rank(self, number: int, ballot: Ballot, **changes: Any) -> State:
        rank = self.ranks[number]._replace(ballot=ballot, **changes)
        ranks, keys = list(self.ranks), list(self.keys)
        ranks[number], keys[number] = rank, rank.key()
        return self._replace(ranks=tuple(ranks), keys=tuple(keys))

    def with_message(self, number: int, **changes: Any) -> State:
        messages = list(self.messages)
        messages[number] = messages[number]._replace(**changes)
        return self._replace(messages=tuple(messages))

    def sending(self, kind: str, content: Any = None) -> State:
        if self.is_lost:
            return self
        return self._replace(outbox=tuple(sorted((*self.outbox, Message(kind, content)), key=repr)))


def copied(ballot: Ballot) -> Ballot:
    return type(ballot)(
        ballot.is_leader,
        ballot.reached,
        ballot.paused,
        ballot.alone,
        ballot.stage,
        dict(ballot.proposals),
        ballot.notice,
        ballot.own_notice,
        ballot.heard_at,
        ballot.answer,
        ballot.leave_at,
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
        scenario = self.scenario
        ranks = tuple(
            Rank(self.ballot(is_leader=number == 0), background=SILENT if number == scenario.silent else READING)
            for number in range(NUM_RANKS)
        )
        keys = tuple(rank.key() for rank in ranks)
        return State(ranks, keys, scenario.notices, scenario.num_saves, scenario.num_busy)

    def moves(self, state: State) -> list[State]:
        """Return the states after each possible move of each thread."""
        nexts: list[State] = []
        for number, rank in enumerate(state.ranks):
            if rank.training != DONE:
                nexts += self.train(state, number)
            if rank.background < STUCK:
                nexts += self.follow(state, number)
        nexts += [self.notify(state, each) for each in dict.fromkeys(state.to_notify)]
        for place, message in enumerate(state.outbox):
            if not state.is_lost:
                outbox = state.outbox[:place] + state.outbox[place + 1 :]
                nexts.append(state._replace(messages=(*state.messages, message), outbox=outbox))
        if self.scenario.loses and not state.is_lost:
            nexts.append(state._replace(is_lost=True, outbox=()))
        if self.scenario.silent is not None and not state.is_over and any(rank.is_noticed for rank in state.ranks):
            nexts.append(state._replace(is_over=True))
        return nexts

    def notify(self, state: State, notified: tuple[int, str]) -> State:
        number, kind = notified
        ballot = copied(state.ranks[number].ballot)
        is_news = ballot.notify(NOTICES[kind], AT_START)
        left = list(state.to_notify)
        left.remove(notified)
        state = state.with_rank(number, ballot, is_noticed=True)._replace(to_notify=tuple(left))
        return state.sending("notice", kind) if is_news else state

    # The training thread.

    def train(self, state: State, number: int) -> list[State]:
        rank, ranks = state.ranks[number], state.ranks
        ballot = copied(rank.ballot)
        reached = ballot.reached
        if rank.training == IN_STEP:
            if not self.has_gradients(state, number):
                return []
            return self.arrive(state, number, ballot)
        if rank.training == WISHING:
            return [self.fulfil(state, rank, ballot)]
        if rank.training == AT_PAUSE:
            must_leave = ballot.is_leader and ballot.notice is not None and not ballot.alone
            calls = ballot.enter_pause()
            state = state.with_rank(number, ballot, training=IN_PAUSE)
            state = state._replace(must_leave=state.must_leave or must_leave)
            return [state.sending("leave") if calls else state]
        if rank.training == IN_PAUSE:
            return [self.ask_in_pause(state, number, ballot, IN_COLLECTIVE)]
        if rank.training == IN_COLLECTIVE:
            all_came = all(came_to_collective(other, reached) for other in ranks)
            return [state.with_rank(number, ballot, training=AFTER_COLLECTIVE)] if all_came else []
        if rank.training == AFTER_COLLECTIVE:
            ballot.paused = False
            return [state.with_rank(number, ballot, training=LEAVING_PAUSE)]
        if not self.is_decided(state, ballot, reached):
            return []
        return [self.ask_in_pause(state, number, ballot, self.after(reached))]

    def is_decided(self, state: State, ballot: Ballot, boundary: int) -> bool:
        """Wait at *boundary* as the product does. Return whether the wait is over."""
        now = AFTER_DEADLINE if state.is_over else AT_START
        if ballot.is_open(boundary):
            now = max(now, AFTER_WAIT)
            if self.scenario.silent is None or now < ballot.wait_until(AT_START):
                return False
            ballot.give_up(boundary, now)
        elif ballot.is_overdue(now):
            ballot.give_up(boundary, now)
        return True

    def arrive(self, state: State, number: int, ballot: Ballot) -> list[State]:
        proposal = None
        if not ballot.pass_quietly():
            if not self.is_decided(state, ballot, ballot.reached + 1):
                return []
            proposal = ballot.arrive()
        boundary = ballot.reached
        if ballot.leaves_at(boundary):
            return [self.leave(state, number, ballot)]
        self.check_obeyed(state, number, boundary)
        saved = state.ranks[number].saved
        if proposal is not None and proposal.verdict == "save":
            saved |= {boundary}
        self.check_saved(state, boundary, saved)
        if number == 0 and boundary != self.scenario.num_steps and ballot.may_propose():
            nexts = [state.with_rank(number, ballot, training=self.pause_or_after(boundary), saved=saved)]
            for wish in self.wishes(state, ballot):
                nexts.append(state.with_rank(number, ballot, training=WISHING, saved=saved, wish=wish))
            return nexts
        return [state.with_rank(number, ballot, training=self.pause_or_after(boundary), saved=saved)]

    def wishes(self, state: State, ballot: Ballot) -> list[Any]:
        """Return what rank 0 may want where it is: to save one or two boundaries ahead, or that all leave."""
        trigger = "steps" if ballot.notice is None else "notice"
        saves: list[Any] = [(ahead, trigger) for ahead in (1, 2)] if state.num_saves else []
        return saves if ballot.notice is None else [*saves, "leave"]

    def fulfil(self, state: State, rank: Rank, ballot: Ballot) -> State:
        """Do what rank 0 wants. Its background thread may have read a message since."""
        following = {"training": self.pause_or_after(ballot.reached), "wish": None}
        if rank.wish == "leave":
            calls = ballot.on_act("leave")
            state = state.with_rank(0, ballot, **following)._replace(must_leave=state.must_leave or not ballot.alone)
            return state.sending("leave") if calls else state
        boundary = ballot.propose(*rank.wish)
        state = state.with_rank(0, ballot, **following)
        if boundary is None:
            return state
        return state._replace(num_saves=state.num_saves - 1).sending("proposal", boundary)

    def ask_in_pause(self, state: State, number: int, ballot: Ballot, otherwise: int) -> State:
        now = AFTER_DEADLINE if state.is_over else AT_START
        if ballot.is_overdue(now):
            ballot.give_up(ballot.reached, now)
        if ballot.leaves_at(ballot.reached):
            return self.leave(state, number, ballot)
        self.check_obeyed(state, number)
        return state.with_rank(number, ballot, training=otherwise)

    def pause_or_after(self, boundary: int) -> int:
        return AT_PAUSE if boundary == self.scenario.pause_at else self.after(boundary)

    def after(self, boundary: int) -> int:
        return DONE if boundary == self.scenario.num_steps else IN_STEP

    def leave(self, state: State, number: int, ballot: Ballot) -> State:
        rank = state.ranks[number]
        if rank.left_at not in (None, ballot.reached):
            raise ViolationError(f"rank {number} left at {rank.left_at} and at {ballot.reached}")
        if self.scenario.is_sound:
            for other in state.ranks:
                if other.left_at not in (None, ballot.reached):
                    raise ViolationError(f"ranks left at different boundaries: {state}")
        saved = rank.saved | {ballot.reached}
        return state.with_rank(number, ballot, training=DONE, left_at=ballot.reached, saved=saved)

    def check_obeyed(self, state: State, number: int, boundary: int | None = None) -> None:
        """
        A rank that knows of a notice does not train on after the deadline, or past *boundary* without a board.

        Unless all had agreed on a later boundary before the board was lost.
        """
        rank = state.ranks[number]
        is_alone = rank.background == GONE and boundary is not None
        agreed = [each.verdict for each in state.messages if each.kind != "proposal" and each.verdict is not None]
        if rank.is_noticed and (state.is_over or (is_alone and max(agreed, default=0) <= boundary)):
            raise ViolationError(f"rank {number} does not obey its notice: {state}")

    def check_saved(self, state: State, boundary: int, saved: frozenset[int]) -> None:
        """No rank saves at a boundary that another has passed without a save, and the other way round."""
        for other in state.ranks if self.scenario.is_sound else ():
            has_passed = other.ballot.reached >= boundary and other.left_at != boundary
            if has_passed and (boundary in other.saved) != (boundary in saved):
                raise ViolationError(f"ranks saved different steps: {state}")

    # The background thread.

    def follow(self, state: State, number: int) -> list[State]:
        rank = state.ranks[number]
        ballot = copied(rank.ballot)
        if state.is_lost:
            if rank.background == SHARING:
                ballot.on_act("leave")
                return [state.with_rank(number, ballot, background=READING)]
            ballot.lose_board()
            return [state.with_rank(number, ballot, background=GONE)]
        if rank.message == len(state.messages):
            return []
        message = state.messages[rank.message]
        if rank.background == READING:
            return self.read(state, number, message, ballot)
        if rank.background == SHARING:
            return self.decide(state, message, ballot)
        if rank.background == COUNTING:
            if len(message.answers) < NUM_RANKS:
                return []
            answers = [answer for _, answer in message.answers]
            count = self.count_proposal if message.kind == "proposal" else self.count_notice
            counted = state.with_message(rank.message, verdict=count(answers), answers=())
            return [counted.with_rank(number, ballot, background=WAITING)]
        if message.verdict is None:
            return []
        following = {"background": READING, "message": rank.message + 1}
        if message.kind == "proposal":
            ballot.on_verdict(message.content, message.verdict)
            return [state.with_rank(number, ballot, **following)]
        if ballot.on_leave(message.verdict):  # it saves and waits for the others to end; it reads no more messages
            saved = rank.saved | {ballot.reached}
            return [state.with_rank(number, ballot, background=STUCK, left_at=ballot.reached, saved=saved)]
        return [state.with_rank(number, ballot, **following)]

    def read(self, state: State, number: int, message: Message, ballot: Ballot) -> list[State]:
        """Answer *message*, or go on to the next."""
        rank = state.ranks[number]
        if message.kind == "proposal":
            in_time = ballot.on_proposal(message.content, "steps")
            answers = ["late"] if not in_time else ["ready", "busy"] if state.num_busy else ["ready"]
            return [self.answered(state, number, ballot, answer) for answer in answers]
        if not self.may_answer(state, number):
            return []
        duty = ballot.on_call() if message.kind == "leave" else ballot.on_notice(NOTICES[message.content], AT_START)
        is_noticed = rank.is_noticed or message.kind == "notice"
        state = state.with_rank(number, ballot, is_noticed=is_noticed)
        state = state._replace(must_leave=state.must_leave or message == Message("notice", "at once"))
        if duty == "share":
            if number != 0:
                return [self.answered(state, number, ballot, "figures", background=READING, message=rank.message + 1)]
            return [self.answered(state, number, ballot, "figures", background=SHARING)]
        if duty == "nothing":
            return [state.with_rank(number, ballot, message=rank.message + 1)]
        if all(other.ballot.answer is None for place, other in enumerate(state.ranks) if place != number):
            state = state._replace(latest=max(other.ballot.reached for other in state.ranks) + 2)
        return [self.answered(state, number, ballot, ballot.answer)]

    def answered(self, state: State, number: int, ballot: Ballot, answer: Any, **changes: Any) -> State:
        place = state.ranks[number].message
        given = tuple(sorted((*state.messages[place].answers, (number, answer))))
        state = state.with_message(place, answers=given)._replace(num_busy=state.num_busy - (answer == "busy"))
        return state.with_rank(number, ballot, **(changes or {"background": COUNTING if number == 0 else WAITING}))

    def decide(self, state: State, message: Message, ballot: Ballot) -> list[State]:
        """Return the states after each first decision of rank 0, once it has the measurements of all."""
        acts = ["train", "leave"]
        if len(message.answers) < NUM_RANKS:
            if self.scenario.silent is None:
                return []
            acts = ["leave"]
        place, nexts = state.ranks[0].message, []
        for act in acts:
            decided = copied(ballot)
            must_leave = state.must_leave or (act == "leave" or ballot.paused)
            calls = decided.on_act(act)
            following = state.with_rank(0, decided, background=READING, message=place + 1)
            following = following.with_message(place, answers=())._replace(must_leave=must_leave)
            nexts.append(following.sending("leave") if calls else following)
        return nexts

    def may_answer(self, state: State, number: int) -> bool:
        return True

    def has_gradients(self, state: State, number: int) -> bool:
        """Return whether the training thread can come to the end of its step: all others have begun it."""
        return all(began_next(other, state.ranks[number].ballot.reached) for other in state.ranks)


def began_next(rank: Rank, reached: int) -> bool:
    """Return whether *rank* has begun the step after the boundary *reached*, or a later one."""
    return rank.ballot.reached > reached or (rank.ballot.reached == reached and rank.training == IN_STEP)


def came_to_collective(rank: Rank, reached: int) -> bool:
    """Return whether *rank* is in, or past, the collective of the pause after the boundary *reached*."""
    is_here = rank.ballot.reached == reached and rank.training in (IN_COLLECTIVE, AFTER_COLLECTIVE, LEAVING_PAUSE)
    return is_here or began_next(rank, reached)


def check_end(model: Model, state: State) -> None:
    """Judge a state in which no thread can move."""
    ranks, scenario = state.ranks, model.scenario
    for number, rank in enumerate(ranks):
        if rank.training == DONE or rank.left_at is not None:
            continue
        # After a fault, ranks may leave apart. Those that need a rank that left are ended by their launcher.
        needs_another = (rank.training == IN_STEP and not model.has_gradients(state, number)) or (
            rank.training == IN_COLLECTIVE
        )
        if scenario.is_sound or not needs_another:
            raise ViolationError(f"nobody can move, and not all are done: {state}")
    if not scenario.is_sound:
        return
    if len({rank.left_at for rank in ranks}) > 1:
        raise ViolationError(f"ranks left at different boundaries: {state}")
    if len({rank.saved for rank in ranks}) > 1:
        raise ViolationError(f"ranks saved different steps: {state}")
    left_at = ranks[0].left_at
    if state.latest is not None and (left_at or scenario.num_steps) > state.latest:
        raise ViolationError(f"the end came after boundary {state.latest}: {state}")
    if state.must_leave and all(rank.ballot.answer is None for rank in ranks):
        raise ViolationError(f"nobody was called to leave: {state}")


class Walk(NamedTuple):
    num_states: int
    ends: set[tuple[int | None, frozenset[int]]]
    """The boundary where rank 0 left, and its saves."""


def walk(model: Model) -> Walk:
    """Visit every state that *model* can reach, and judge those where it ends."""
    to_visit = [model.start()]
    seen, ends = {to_visit[0].key()}, set()
    while to_visit:
        state = to_visit.pop()
        nexts = model.moves(state)
        if not nexts:
            check_end(model, state)
            ends.add((state.ranks[0].left_at, state.ranks[0].saved))
        for following in nexts:
            key = following.key()
            if key not in seen:
                seen.add(key)
                to_visit.append(following)
    return Walk(len(seen), ends)
