"""
Many ranks agree over a board of notes.

Each rank has a background thread that reads numbered messages. In a quiet step the training thread takes
one uncontended lock. Whoever waits, waits only for background threads, so nobody can wait in a circle.

*Planned saves.* A little before one is due rank 0 proposes a boundary ahead of all ranks; every rank
answers ``ready``, ``busy`` (its earlier save is still being pushed) or ``late`` (it is past that
boundary); rank 0 gives the verdict. A rank that reaches the boundary before the verdict waits for it there.

*Notices.* The notified rank sends one message. On every rank the background thread answers, under the lock
that the training thread takes at a boundary, with the next boundary that this rank will reach, or the one
it stands at. The largest answer is the boundary at which all save and leave. A rank that comes to its own
answer before the largest is known waits there. This answer must not depend on the training thread: one that
waits at boundary k for another to *arrive* somewhere deadlocks, because that one may need its gradients of
step k + 1 to get there.

*Notices that leave time.* Each rank posts what it has measured, and training goes on. Rank 0 alone asks the planner at
each boundary, and calls all to leave when it is time; from then on it is as above. A pause ends the wait.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

from ..ranks import BoardClosedError
from ..schedule import AgreedReason, PeriodicTrigger
from .ballot import Ballot, Proposal, ProposalAnswer, count_notice, count_proposal
from .decision import Decision
from .notice import Notice, merge

logger = logging.getLogger(__name__)

MIN_LEAD: Final = 2
LEAD_S: Final = 0.05
"""How long before a save rank 0 proposes it, in boundaries and in seconds, whichever is more: time enough for
the answers, so that nobody waits."""

MAX_LEAD_S: Final = 2.0
"""How far that grows, by doubling, when a rank was past the proposed boundary or busy."""

VERDICT_WAIT_S: Final = 10.0
"""Longest wait at a boundary for a verdict. Only a dead rank takes that long; the job is about to fail."""

SAME_WORD_S: Final = 60.0
"""How long a wish to save soon counts as the same one: all ranks of a machine hear of it, each in its time."""

CLOSE_WAIT_S: Final = 2.0
"""Longest wait for the threads to end. Only a board that hangs takes that long."""


class Group:
    """
    The :class:`~.decision.Agreement` of a job of many processes.

    Args:
        ranks: This process among them.
        board: What they agree over.
        trigger: Says when a save is due. That of rank 0 is asked.
        ready: Whether this rank's earlier save is done, so that another may begin.
        deferred: Called on rank 0 with a step that was due and is not saved.
        leave_in_pause: Called on a thread of the agreement when all leave with the step at which this rank pauses.
        planner: Asked on rank 0 at each boundary once a notice leaves time.
    """

    def __init__(
        self,
        job,
        trigger: PeriodicTrigger,
        participant,
    ) -> None:
        self._ranks = job.ranks
        self._board = job.board
        self._trigger = trigger
        self._ready = participant.is_ready
        self._deferred = participant.on_deferred
        self._leave_in_pause = participant.leave_in_pause
        self._planner = participant
        self._lock = threading.Lock()  # around the ballot and the notice
        self._changed = threading.Condition(self._lock)
        self._ballot = Ballot()
        self._notice: Notice | None = None
        self._own_notice: Notice | None = None
        self._knows_figures = False  # of all ranks, on rank 0
        self._called = False  # all, by rank 0, to leave
        self._loss = ""  # why there is no board any more
        self._wished_at = -math.inf  # when it was last asked to save soon
        self._lead_s = LEAD_S
        self._told_deferred = False
        self._num_failed = 0  # proposals since the last save
        # how fast the training goes; of the training thread alone:
        self._stride = 1
        self._step_s = 0.0
        self._last: tuple[int, float] | None = None
        self._thread = threading.Thread(target=self._follow, name="spot-agreement", daemon=True)

    def open(self):
        self._thread.start()

    @property
    def notice(self) -> Notice | None:
        """See :class:`~.decision.Agreement`."""
        return self._notice

    def notify(self, notice: Notice) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._own_notice = merge(self._own_notice, notice)
            if self._ballot.alone:
                self._obey_alone()
        if merge(self._notice, notice) is not self._notice:
            message = {"kind": "notice", "source": notice.source, "left_s": notice.deadline - time.monotonic()}
            self._send({**message, "margin_s": notice.margin_s, "at_once": notice.at_once})

    def save_soon(self) -> None:
        """See :class:`~.decision.Agreement`."""
        self._send_aside({"kind": "soft"})

    def at_boundary(self, step: int) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        plan = None
        with self._lock:
            if not self._ballot.pass_quietly():
                boundary = self._ballot.reached + 1
                if self._ballot.is_open(boundary):
                    self._wait_decided(boundary)
                plan = self._ballot.arrive()
                if self._ballot.leaves_at(boundary):
                    return Decision("notice", leaves=True)
        if self._loss:  # not said when it happens: the end of the training takes the board away too
            logger.error("the ranks can no longer agree, nothing will be saved from now on: %s", self._loss)
            self._loss = ""
        if plan is not None and plan.verdict == "save":
            return Decision(plan.trigger)
        if self._ranks.rank == 0:
            if plan is not None and plan.verdict == "defer":
                self._defer(step)
            self._measure(step)
            self._plan(step)
        return None

    def _wait_decided(self, boundary: int) -> None:
        """Wait, with the lock, until it is known what happens at *boundary*."""
        wait_s = VERDICT_WAIT_S
        if self._notice is not None:
            left_s = self._notice.deadline - time.monotonic()
            wait_s = left_s if self._notice.at_once or self._called else min(wait_s, left_s)
        if not self._changed.wait_for(lambda: not self._ballot.is_open(boundary), max(0.0, wait_s)):
            logger.error("a rank does not answer; boundary %s is decided without it", boundary)
            if self._notice is not None:
                self._ballot.hear_leave(boundary)

    def saved(self, step: int) -> None:
        """See :class:`~.decision.Agreement`."""
        self._told_deferred = False
        self._num_failed = 0
        self._trigger.reset(step)
        if self._ranks.rank == 0:
            self._measure(step)
            self._plan(step)

    def _measure(self, step: int) -> None:
        now = time.monotonic()
        if self._last is not None and step > self._last[0]:
            self._stride = step - self._last[0]
            self._step_s = now - self._last[1]
        self._last = (step, now)

    def _plan(self, step: int) -> None:
        """On rank 0, behind *step*: propose a boundary when a save is near, or call all to leave."""
        if self._ballot.proposals or self._ballot.alone:
            return
        if (notice := self._notice) is not None:
            self._heed(step, notice)
            return
        trigger: AgreedReason
        steps_left = self._trigger.steps_left(step)
        if steps_left <= self._lead(self._lead_s) * self._stride:
            ahead, trigger = math.ceil(steps_left / self._stride), "steps"
        elif due := self._trigger.due(step):
            ahead, trigger = self._lead(self._lead_s), due
        else:
            return
        if self._num_failed:
            ahead = max(ahead, min(MIN_LEAD * 2**self._num_failed, self._lead(MAX_LEAD_S)))
        if not self._ready():
            if self._trigger.due(step) is not None:
                self._defer(step)
            return
        self._propose(ahead, trigger)

    def _heed(self, step: int, notice: Notice) -> None:
        if notice.at_once or self._called or not self._knows_figures:
            return
        ahead = self._lead(LEAD_S)
        act = self._planner.decide(step, notice, ahead)
        if act == "leave":
            self._call_to_leave()
        elif act == "save" and self._ready():
            self._propose(ahead, "notice")

    def _propose(self, ahead: int, trigger: AgreedReason) -> None:
        with self._lock:
            boundary = self._ballot.reached + max(1, ahead)
            # Known to this rank at once, so that its training thread cannot run past it.
            self._ballot.hear_proposal(boundary, Proposal(trigger))
        self._send_aside({"kind": "plan", "boundary": boundary, "trigger": trigger})

    def _call_to_leave(self) -> None:
        self._called = True
        self._send_aside({"kind": "leave"})

    def _lead(self, seconds: float) -> int:
        """Return how many boundaries training passes in *seconds*, but at least a few."""
        return max(MIN_LEAD, math.ceil(seconds / self._step_s)) if self._step_s else MIN_LEAD

    def _defer(self, step: int) -> None:
        if not self._told_deferred:
            self._told_deferred = True
            self._deferred(step)

    def enter_pause(self) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._ballot.paused = True
            if self._waits():
                self._call_to_leave()

    def in_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            leaves = self._ballot.leaves_at(self._ballot.reached)
        return Decision("notice", leaves=True) if leaves else None

    def exit_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._ballot.paused = False
            # Answered while standing here? Then it is open whether all leave here: wait for the others' threads.
            if self._ballot.is_open(self._ballot.reached):
                self._wait_decided(self._ballot.reached)
        return self.in_pause()

    def stay(self) -> bool:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            if self._own_notice is not None:
                return False
            self._notice = None
            self._knows_figures = self._called = False
            self._ballot.stay()
        self._wake()
        return True

    def close(self) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._ballot.go_alone(leave=False)
            self._changed.notify_all()
        # The board of a machine that vanished may hold up either of the two.
        waker = self._wake()
        deadline = time.monotonic() + CLOSE_WAIT_S
        for thread in (self._thread, waker):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wake(self) -> threading.Thread:
        """Say a last word, which our own thread reads too, and ends."""
        return self._send_aside({"kind": "bye"})

    def _send_aside(self, message: dict[str, Any]) -> threading.Thread:
        """Send *message* from a thread of its own: training must not wait for the board."""
        sender = threading.Thread(target=self._send, args=(message,), name="spot-message", daemon=True)
        sender.start()
        return sender

    def _send(self, message: dict[str, Any]) -> None:
        try:
            number = self._board.take_number("messages")
            self._board.post(f"message/{number}", {**message, "number": number, "rank": self._ranks.rank})
        except BoardClosedError as error:
            self._lost(error)

    def _follow(self) -> None:
        number = 0
        try:
            while not self._ballot.alone:
                number += 1
                message = cast("dict[str, Any]", self._board.read(f"message/{number}"))
                if message["kind"] == "plan":
                    self._on_plan(message)
                elif message["kind"] == "notice":
                    self._on_notice(message)
                elif message["kind"] == "leave":
                    self._on_leave(message["number"])
                elif message["kind"] == "soft" and time.monotonic() - self._wished_at > SAME_WORD_S:
                    self._wished_at = time.monotonic()
                    self._trigger.hasten()  # rank 0 is the one that asks it
        except BoardClosedError as error:
            self._lost(error)

    def _on_plan(self, message: dict[str, Any]) -> None:
        number, boundary = message["number"], message["boundary"]
        with self._lock:
            in_time = self._ballot.hear_proposal(boundary, Proposal(message["trigger"]))
        answer: ProposalAnswer = "late" if not in_time else "ready" if self._ready() else "busy"
        verdict = self._vote(number, answer, count_proposal)
        with self._lock:
            self._ballot.hear_verdict(boundary, verdict)
            self._num_failed += verdict != "save"
            if verdict == "late":  # ranks that do not wait for each other's gradients run further ahead
                self._lead_s = min(2 * self._lead_s, MAX_LEAD_S)
            self._changed.notify_all()

    def _on_notice(self, message: dict[str, Any]) -> None:
        number, deadline = message["number"], time.monotonic() + message["left_s"]
        with self._lock:
            is_first = self._notice is None
            heard = Notice(message["source"], deadline, message["margin_s"], message["at_once"])
            self._notice = merge(self._notice, heard)
            at_once = self._notice.at_once
        if at_once:
            self._on_leave(number)
        elif is_first:
            self._share_figures(number)

    def _share_figures(self, number: int) -> None:
        """Tell rank 0 what this rank has measured. Rank 0 decides from then on when all leave."""
        self._board.post(f"figures/{number}/{self._ranks.rank}", self._planner.figures())
        if self._ranks.rank != 0:
            return
        self._planner.merge([self._board.read(f"figures/{number}/{rank}") for rank in range(self._ranks.world_size)])
        with self._lock:
            notice, step = self._notice, 0 if self._last is None else self._last[0]
        # Asked here first: a step may take longer than there is time.
        if notice is not None and self._planner.decide(step, notice, self._lead(LEAD_S)) == "leave":
            self._call_to_leave()
        with self._lock:
            self._knows_figures = True
            if self._ballot.paused and self._waits():
                self._call_to_leave()

    def _waits(self) -> bool:
        """Whether this is rank 0, and all train on until it calls them to leave. Call with the lock held."""
        is_patient = self._notice is not None and not self._notice.at_once
        return is_patient and self._ranks.rank == 0 and not self._called and not self._ballot.alone

    def _on_leave(self, number: int) -> None:
        with self._lock:
            if self._ballot.answer is not None:  # that is being decided, or was
                return
            answer = self._ballot.hear_notice()
        boundary = self._vote(number, answer, count_notice)
        with self._lock:
            leaves_in_pause = self._ballot.hear_leave(boundary)
            self._changed.notify_all()
        if leaves_in_pause:
            self._leave_in_pause()

    def _vote(self, number: int, answer: Any, count: Callable[[list[Any]], Any]) -> Any:
        """Give this rank's *answer* to a message, and return what rank 0 makes of all of them."""
        self._board.post(f"answer/{number}/{self._ranks.rank}", answer)
        if self._ranks.rank == 0:
            answers = [self._board.read(f"answer/{number}/{rank}") for rank in range(self._ranks.world_size)]
            self._board.post(f"verdict/{number}", count(answers))
        return self._board.read(f"verdict/{number}")

    def _lost(self, error: BoardClosedError) -> None:
        with self._lock:
            if self._ballot.alone:
                return
            self._loss = str(error)
            self._obey_alone()
            self._changed.notify_all()

    def _obey_alone(self) -> None:
        """Ask nobody any more, and obey a notice that is known or was on its way. Call with the lock held."""
        if self._own_notice is not None:
            self._notice = merge(self._notice, self._own_notice)
        self._ballot.go_alone(leave=self._notice is not None)
