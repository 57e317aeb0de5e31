"""
What one rank knows of the votes of all, and what follows from it: the rules, without threads, board or clock.

Kept apart so that ``tests/unit/agreement/test_ballot.py`` can walk through every order in which things happen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ..schedule import AgreedReason

ProposalAnswer = Literal["ready", "busy", "late"]
ProposalVerdict = Literal["save", "defer", "late"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal to save at a boundary that this rank has not passed."""

    trigger: AgreedReason
    verdict: ProposalVerdict | None = None


@dataclass(slots=True)
class Ballot:
    """One rank's side of the votes. Not thread-safe: each call is one step of the protocol."""

    reached: int = 0
    """The last boundary that the training thread has passed."""

    paused: bool = False
    """Whether it stands still there."""

    alone: bool = False
    """Whether there is nobody to agree with any more. Then nothing is waited for."""

    # By boundary: rank 0 may propose the next one when another rank has yet to come to the last one.
    proposals: dict[int, Proposal] = field(default_factory=dict)

    answer: int | None = None
    """Once there is a notice: the boundary before which this rank cannot leave."""

    leave_at: int | None = None
    """The boundary at which all leave, when that is known."""

    def pass_quietly(self) -> bool:
        """Pass the next boundary if nothing is known that could concern it. Nearly always so, and kept short."""
        if self.proposals or self.answer is not None or self.leave_at is not None:
            return False
        self.reached += 1
        return True

    def is_open(self, boundary: int) -> bool:
        """Return whether the training thread must wait to learn what happens at *boundary*."""
        # The end first: a rank that leaves in a pause does not answer the proposals that come behind the notice.
        if self.alone or self.leaves_at(boundary):
            return False
        if boundary in self.proposals and self.proposals[boundary].verdict is None:
            return True
        return self.answer is not None and self.answer <= boundary and self.leave_at is None

    def leaves_at(self, boundary: int) -> bool:
        """Return whether it is known that all leave at *boundary*, if they have not left before."""
        return self.leave_at is not None and self.leave_at <= boundary

    def arrive(self) -> Proposal | None:
        """Pass the next boundary, which is not open. Return the plan for it, if there was one."""
        self.reached += 1
        return self.proposals.pop(self.reached, None)

    def next_stop(self) -> int:
        """Return the boundary that this rank comes to next, or stands at in a pause."""
        return self.reached if self.paused else self.reached + 1

    def hear_proposal(self, boundary: int, plan: Proposal) -> bool:
        """Take up *plan*, unless it was this rank's own proposal. Return whether it came in time."""
        if boundary > self.reached:
            self.proposals.setdefault(boundary, plan)
        return boundary in self.proposals

    def hear_verdict(self, boundary: int, verdict: ProposalVerdict) -> None:
        """Take up what rank 0 made of all answers to the plan."""
        if verdict == "late":
            self.proposals.pop(boundary, None)
        elif boundary in self.proposals:  # else given up: the verdict did not come in time
            self.proposals[boundary] = replace(self.proposals[boundary], verdict=verdict)

    def hear_notice(self) -> int:
        """Take up that one rank has a notice. Return this rank's answer, which never waits for its training thread."""
        self.answer = self.next_stop()
        return self.answer

    def hear_leave(self, boundary: int) -> bool:
        """Take up where all leave. Return whether this rank stands in a pause there."""
        self.leave_at = boundary
        return self.paused and boundary == self.reached

    def go_alone(self, *, leave: bool) -> None:
        """Ask nobody any more. With *leave*, obey a notice at the next stop, unless it is known where."""
        self.alone = True
        if leave and self.leave_at is None:
            self.leave_at = self.next_stop()

    def stay(self) -> None:
        """Forget the notice that the others leave because of, and ask nobody any more."""
        self.alone = True
        self.proposals.clear()
        self.answer = self.leave_at = None


def count_proposal(answers: Iterable[ProposalAnswer]) -> ProposalVerdict:
    """Return rank 0's verdict: one rank that is late or busy is enough for nobody to save."""
    given = set(answers)
    return "late" if "late" in given else "defer" if "busy" in given else "save"


def count_notice(answers: Iterable[int]) -> int:
    """Return where all leave: the first boundary that none of them has passed."""
    return max(answers)
