"""
The rules of the agreement, as one rank applies them: pure, without threads, board or clock.

Each method of :class:`Ballot` is one step of the protocol and is called with the lock of the group held. Times are
monotonic seconds that the caller passes in. ``tests/unit/agreement/test_ballot.py`` walks through every order in which
the ranks of a small job can take these steps, also with a lost board and with a rank that never answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final, Literal

from ..schedule import AgreedReason
from .decision import Act
from .messages import ProposalAnswer, ProposalVerdict
from .notice import Notice, merge

VERDICT_WAIT_S: Final = 10.0
"""
Longest wait at a boundary for a verdict about a proposal, in seconds.

Only a rank that hangs takes so long, and the job is about to fail. After a notice the ranks also
have at least so long to agree before one of them leaves alone.
"""

NoticeDuty = Literal["answer", "share", "nothing"]
"""The part of this rank after it reads a notice: answer with a boundary, share its measurements, or nothing."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal to save at a boundary that this rank has not passed."""

    trigger: AgreedReason
    verdict: ProposalVerdict | None = None


class Stage(Enum):
    """The position of one rank on the way from a notice to leaving."""

    QUIET = auto()
    """No notice is known."""
    SENT = auto()
    """A notice of this rank is on its way to the board. This rank has not read it back."""
    MEASURING = auto()
    """A notice leaves time, so training continues. Rank 0 collects the measurements of all ranks."""
    PLANNING = auto()
    """On rank 0 alone: it has the measurements, and decides at each boundary."""
    CALLED = auto()
    """On rank 0 alone: its call to leave is on its way to the board. It has not read the call back."""
    ANSWERED = auto()
    """This rank has answered with a boundary, and waits there until it is known where all leave."""
    AGREED = auto()
    """The boundary at which this rank leaves is known."""


_QUIET: Final = Stage.QUIET  # looked up in every step; before Python 3.12 an attribute of an enum costs more


@dataclass(slots=True)
class Ballot:
    """One rank's side of the votes."""

    is_leader: bool
    """True on rank 0, which proposes, counts answers, and calls all to leave."""

    reached: int = 0
    """The last boundary that the training thread has passed."""

    paused: bool = False
    """True while the training thread stands still at that boundary."""

    alone: bool = False
    """True once this rank agrees with no other any more. Then it waits for none."""

    stage: Stage = Stage.QUIET

    # By boundary: rank 0 may propose the next one when another rank has yet to come to the last one.
    proposals: dict[int, Proposal] = field(default_factory=dict)

    notice: Notice | None = None
    """The notice that was read from the board, so that all ranks know it."""

    own_notice: Notice | None = None
    """The notice about the machine of this rank."""

    heard_at: float = math.inf
    """Time at which this rank first knew of a notice."""

    answer: int | None = None
    """The first boundary at which this rank can leave, once it has said so."""

    leave_at: int | None = None
    """The boundary at which this rank leaves, once that is known."""

    # Boundaries. The training thread takes these steps.

    def pass_quietly(self) -> bool:
        """Pass the next boundary if nothing concerns it. This is the case at nearly all boundaries."""
        if self.proposals or self.alone or self.stage is not _QUIET:
            return False
        self.reached += 1
        return True

    def is_open(self, boundary: int) -> bool:
        """Return whether the training thread must wait until it is known what happens at *boundary*."""
        # Leaving comes first. A rank that leaves in a pause does not answer proposals made after the notice.
        if self.alone or self.leaves_at(boundary):
            return False
        if boundary in self.proposals and self.proposals[boundary].verdict is None:
            return True
        return self.stage is Stage.ANSWERED and self.answer is not None and self.answer <= boundary

    def wait_until(self, started: float) -> float:
        """Return the time until which the training thread waits at an open boundary, since it began at *started*."""
        known = self._known()
        leave_by = math.inf if known is None else known.leave_by
        return leave_by if self.stage is Stage.ANSWERED else min(started + VERDICT_WAIT_S, leave_by)

    def is_overdue(self, now: float) -> bool:
        """Return whether there is a notice, and no time left in which the ranks could agree on a boundary."""
        known = self._known()
        if known is None or self.leave_at is not None:
            return False
        # A notice may come when its time is over. The other ranks must have had time to answer all the same.
        return now >= max(known.leave_by, self.heard_at + VERDICT_WAIT_S)

    def give_up(self, boundary: int, now: float) -> None:
        """Wait no longer at *boundary* for a rank that does not answer. Leave there if a notice leaves no time."""
        self.proposals.pop(boundary, None)
        known = self._known()
        if known is not None and (self.stage is Stage.ANSWERED or now >= known.leave_by):
            self.notice = known
            self.on_leave(boundary)

    def arrive(self) -> Proposal | None:
        """Pass the next boundary, which is not open. Return the proposal about it, if any."""
        self.reached += 1
        return self.proposals.pop(self.reached, None)

    def leaves_at(self, boundary: int) -> bool:
        """Return whether this rank leaves at *boundary*, or should have left before."""
        return self.leave_at is not None and self.leave_at <= boundary

    def enter_pause(self) -> bool:
        """Stand still at the last boundary. Return whether this rank must send the call to leave."""
        self.paused = True
        return self.on_act("leave")

    # Saves.

    def may_propose(self) -> bool:
        """Return whether this is the rank that decides about the next boundaries, and nothing is decided yet."""
        is_idle = not self.proposals and not self.alone
        return self.is_leader and is_idle and self.stage in (Stage.QUIET, Stage.PLANNING)

    def propose(self, num_ahead: int, trigger: AgreedReason) -> int | None:
        """
        Propose to save at the boundary *num_ahead* boundaries ahead. Return it, or None if that is out of place now.

        The proposal is in force here before it is sent, so that the training thread cannot run past it.
        """
        if not self.may_propose() or (self.stage is Stage.PLANNING) != (trigger == "notice"):
            return None
        boundary = self.reached + max(1, num_ahead)
        self.proposals[boundary] = Proposal(trigger)
        return boundary

    def on_proposal(self, boundary: int, trigger: AgreedReason) -> bool:
        """Take the proposal to save at *boundary*. Return whether it is in time for this rank."""
        if boundary > self.reached:
            self.proposals.setdefault(boundary, Proposal(trigger))
        return boundary in self.proposals

    def on_verdict(self, boundary: int, verdict: ProposalVerdict) -> None:
        """Take the verdict about the proposal to save at *boundary*."""
        if verdict == "late":
            self.proposals.pop(boundary, None)
        elif boundary in self.proposals:  # else given up, because the verdict did not come in time
            self.proposals[boundary] = replace(self.proposals[boundary], verdict=verdict)

    # Notices.

    def notify(self, notice: Notice, now: float) -> bool:
        """Take a notice about this rank's machine. Return whether this rank must send it to all."""
        self.own_notice = merge(self.own_notice, notice)
        self.heard_at = min(self.heard_at, now)
        if self.alone:
            self.lose_board()
            return False
        if merge(self.notice, notice) is self.notice:
            return False
        if self.stage is Stage.QUIET:
            self.stage = Stage.SENT
        return True

    def on_notice(self, notice: Notice, now: float) -> NoticeDuty:
        """Take a notice that all ranks read. Return the part of this rank."""
        is_first = self.notice is None
        self.notice = merge(self.notice, notice)
        self.heard_at = min(self.heard_at, now)
        if self.notice.at_once:
            return self.on_call()
        if is_first and self.stage in (Stage.QUIET, Stage.SENT):
            self.stage = Stage.MEASURING
        return "share" if is_first else "nothing"

    def on_act(self, act: Act) -> bool:
        """
        Take what rank 0 decides while a notice leaves time. Return whether this rank must send the call to leave.

        The first decision is made when rank 0 has the measurements of all ranks. In a pause, all leave.
        """
        if not self.is_leader or self.alone or self.stage not in (Stage.MEASURING, Stage.PLANNING):
            return False
        leaves = act == "leave" or self.paused
        self.stage = Stage.CALLED if leaves else Stage.PLANNING
        return leaves

    def on_call(self) -> NoticeDuty:
        """Take the call to leave. Return whether this rank must answer, which never waits for the training thread."""
        if self.answer is not None or self.notice is None:  # the first call counts
            return "nothing"
        if self.leave_at is None:
            self.answer = self.reached if self.paused else self.reached + 1
            self.stage = Stage.ANSWERED
        else:  # given up before
            self.answer = self.leave_at
        return "answer"

    def on_leave(self, boundary: int) -> bool:
        """Take the boundary at which to leave. Return whether this rank stands there in a pause."""
        if self.leave_at is None:  # else given up, because the boundary was not known in time
            self.leave_at = boundary
            self.stage = Stage.AGREED
        return self.paused and boundary == self.leave_at == self.reached

    # The end of the agreement.

    def lose_board(self) -> None:
        """Agree with no other rank any more. Obey a notice that is known, or was on its way, alone."""
        self.alone = True
        self.notice = self._known()
        if self.notice is not None:
            self.on_leave(self.reached if self.paused else self.reached + 1)

    def stay(self) -> bool:
        """Continue alone, without the ranks that leave. Return False if this rank has a notice itself."""
        if self.own_notice is not None:
            return False
        self.alone = True
        self.proposals.clear()
        self.stage = Stage.QUIET
        self.notice = self.answer = self.leave_at = None
        return True

    def _known(self) -> Notice | None:
        """Return the notice that all ranks know, together with the one about this rank's machine."""
        return self.notice if self.own_notice is None else merge(self.notice, self.own_notice)


def count_proposal(answers: Iterable[ProposalAnswer]) -> ProposalVerdict:
    """Return the verdict of rank 0. If one rank is late or busy, no rank saves."""
    given = set(answers)
    return "late" if "late" in given else "defer" if "busy" in given else "save"


def count_notice(answers: Iterable[int]) -> int:
    """Return the boundary at which all leave: the first one that no rank has passed."""
    return max(answers)
