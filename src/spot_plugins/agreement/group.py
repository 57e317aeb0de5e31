"""
Many ranks agree over a board of notes.

Each rank has a background thread that reads numbered messages. In a quiet step the training thread takes one
uncontended lock. A thread that waits, waits only for background threads, so there is no circle of waits. The rules are
in :mod:`.ballot`. This module moves messages, waits, and calls the participant.

*Proposals.* A little before a save is due, rank 0 proposes a boundary ahead of all ranks. Every rank answers ``ready``,
``busy`` (its earlier save is still being pushed) or ``late`` (it has passed that boundary). Rank 0 gives the verdict. A
rank that reaches the boundary before the verdict waits for the verdict there.

*Notices.* The notified rank sends one message. On every rank the background thread answers with the next boundary that
this rank will reach, or the one at which it pauses. It answers under the lock that the training thread takes at a
boundary. All ranks save and leave at the largest answer. A rank that reaches its own answer before the largest one is
known waits there. The answer must not depend on the training thread. If one waited at boundary k until another rank
*arrives* somewhere, both would wait for ever, because the other rank may need its gradients of step k + 1 to get there.

*Notices that leave time.* Each rank posts its measurements, and training continues. Rank 0 alone decides at each
boundary, and calls all ranks to leave when it is time. The call is answered like a notice. A pause ends the wait.

*A rank that never answers.* Every wait of a training thread has a limit: 10 seconds for a verdict, the deadline of the
notice for the boundary at which to leave. If measurements are missing, rank 0 calls all ranks to leave at once. A rank
that has a notice and gets no answer leaves alone when its time is over. A step that not all ranks save is not
committed.

*A lost board or rank.* Each rank continues alone and saves nothing more. It obeys a notice at its next boundary. A
board with a note that makes no sense counts as lost. If a rank is lost, the participant ends a process whose training
thread is stuck in a collective with it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Final, TypeAlias

from ..machine.threads import start_thread
from ..ranks import BoardClosedError, Job, RankLostError
from ..schedule import AgreedReason, PeriodicTrigger
from .ballot import VERDICT_WAIT_S, Ballot, count_notice, count_proposal
from .decision import Act, Decision, Participant
from .mail import Mail
from .messages import (
    GoodbyeMessage,
    LeaveMessage,
    NoticeMessage,
    ProposalAnswer,
    ProposalMessage,
    SoonMessage,
    decode_boundary,
    decode_proposal_answer,
    decode_proposal_verdict,
)
from .notice import Notice
from .pace import Pace

logger = logging.getLogger(__name__)

CLOSE_WAIT_S: Final = 2.0
"""Longest wait for the threads to end. Only a board that hangs takes so long."""

Wish: TypeAlias = "tuple[int, AgreedReason] | Notice"
"""A save that rank 0 may propose (boundaries ahead, reason), or a notice that leaves time, about which it decides."""


class Group:
    """
    The :class:`~.decision.Agreement` of a job of many processes.

    Args:
        job: This process among the ranks, and their board.
        trigger: Says when a save is due. Only that of rank 0 is asked.
        participant: The training of this rank.
    """

    def __init__(self, job: Job, trigger: PeriodicTrigger, participant: Participant) -> None:
        self._is_leader = job.rank == 0
        self._participant = participant
        self._mail = Mail(job, self._lose)
        self._thread = threading.Thread(target=self._follow, name="spot-agreement", daemon=True)
        self._lock = threading.Lock()  # around all that follows; never held while the participant or the board works
        self._changed = threading.Condition(self._lock)
        self._ballot = Ballot(is_leader=self._is_leader)
        self._pace = Pace(trigger)
        self.lost: RankLostError | None = None
        """See :class:`~.decision.Agreement`."""
        self._loss = ""  # the reason why there is no board any more, until it is logged

    def open(self) -> None:
        """See :class:`~.decision.Agreement`."""
        start_thread(self._thread)

    @property
    def notice(self) -> Notice | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            return self._ballot.notice

    def notify(self, notice: Notice) -> None:
        """See :class:`~.decision.Agreement`."""
        now = time.monotonic()
        with self._lock:
            is_news, is_known = self._ballot.notify(notice, now), self._ballot.notice is not None
        if is_known:  # from before, or because there is no board to send it to
            self._participant.on_notice()
        if is_news:
            self._mail.send(NoticeMessage.of(notice, now))

    def cut_short(self) -> bool:
        """See :class:`~.decision.Agreement`. The notice is not one about the machine of this rank."""
        with self._lock:
            notice = self._ballot.notice
            if self._ballot.alone or self._ballot.answer is not None or notice is None or notice.at_once:
                return False
        self._mail.send_aside(NoticeMessage.of(replace(notice, at_once=True), time.monotonic()))
        return True

    def save_soon(self) -> None:
        """See :class:`~.decision.Agreement`."""
        self._mail.send_aside(SoonMessage())

    def at_boundary(self, step: int) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        loss, proposal, is_deferred = "", None, False
        with self._lock:
            if self._ballot.pass_quietly():
                if not self._is_leader:
                    return None
            else:
                boundary = self._ballot.reached + 1
                self._wait_decided(boundary)
                proposal = self._ballot.arrive()
                if self._ballot.leaves_at(boundary):
                    return Decision("notice", leaves=True)
                loss, self._loss = self._loss, ""
            if proposal is not None and proposal.verdict == "save":
                return Decision(proposal.trigger)
            if proposal is not None and proposal.verdict == "defer" and self._is_leader:
                is_deferred = self._pace.defer()
            wish = self._wish(step)
        if loss:  # not logged when it happens, because the end of the training takes the board away too
            logger.error("the ranks can no longer agree, so nothing will be saved from now on: %s", loss)
        if is_deferred:
            self._participant.on_deferred(step)
        if wish is not None:
            self._fulfil(step, wish)
        return None

    def saved(self, step: int) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._pace.on_saved(step)
            wish = self._wish(step)
        if wish is not None:
            self._fulfil(step, wish)

    def enter_pause(self) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            calls = self._ballot.enter_pause()
        if calls:
            self._mail.send_aside(LeaveMessage())

    def in_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            now, boundary = time.monotonic(), self._ballot.reached
            if self._ballot.is_overdue(now):
                self._ballot.give_up(boundary, now)
            leaves = self._ballot.leaves_at(boundary)
        return Decision("notice", leaves=True) if leaves else None

    def exit_pause(self) -> Decision | None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._ballot.paused = False
            # If this rank has answered in the pause, all may leave here. The others' threads say whether they do.
            self._wait_decided(self._ballot.reached)
        return self.in_pause()

    def stay(self) -> bool:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            stays = self._ballot.stay()
        if stays:
            self._mail.send_aside(GoodbyeMessage())
        return stays

    def close(self) -> None:
        """See :class:`~.decision.Agreement`."""
        with self._lock:
            self._ballot.alone = True
            self._changed.notify_all()
        if self._thread.ident is None:  # never opened
            return
        waker = self._mail.send_aside(GoodbyeMessage())
        # The board of a machine that vanished may hold up either thread.
        deadline = time.monotonic() + CLOSE_WAIT_S
        for thread in (self._thread, waker):
            if thread is not None:
                # wait: CLOSE_WAIT_S; the thread is left behind, and ends with the process
                thread.join(max(0.0, deadline - time.monotonic()))

    # The training thread.

    def _wait_decided(self, boundary: int) -> None:
        """Wait until it is known what happens at *boundary*, or until it is too late. Call with the lock held."""
        started = now = time.monotonic()
        while self._ballot.is_open(boundary) and (left_s := self._ballot.wait_until(started) - now) > 0:
            # wait: 10 s for a verdict, the deadline of the notice for a boundary; the boundary is decided without the
            # rank that does not answer
            self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
            now = time.monotonic()
        if self._ballot.is_open(boundary) or self._ballot.is_overdue(now):
            logger.error(
                "a rank does not answer, so boundary %s is decided without it. Look at the logs of the other ranks",
                boundary,
            )
            self._ballot.give_up(boundary, now)

    def _wish(self, step: int) -> Wish | None:
        """Return what rank 0 has to arrange after *step*, if anything. Call with the lock held."""
        if not self._is_leader:
            return None
        self._pace.end_step(step, time.monotonic())
        return (self._ballot.notice or self._pace.wish(step)) if self._ballot.may_propose() else None

    def _fulfil(self, step: int, wish: Wish) -> None:
        """On rank 0, propose the save that it wishes after *step*, or call all ranks to leave."""
        trigger: AgreedReason = "notice"
        if isinstance(wish, Notice):
            with self._lock:
                num_ahead = self._pace.num_ahead()
            act = self._participant.decide(step, wish, num_ahead)
            if act == "leave":
                with self._lock:
                    calls = self._ballot.on_act(act)
                if calls:
                    self._mail.send_aside(LeaveMessage())
            if act != "save" or not self._participant.is_ready():
                return
        else:
            num_ahead, trigger = wish
            if not self._participant.is_ready():
                with self._lock:
                    is_deferred = self._pace.is_due(step) and self._pace.defer()
                if is_deferred:
                    self._participant.on_deferred(step)
                return
        with self._lock:
            boundary = self._ballot.propose(num_ahead, trigger)
        if boundary is not None:
            self._mail.send_aside(ProposalMessage(boundary=boundary, trigger=trigger))

    # The thread that reads messages.

    def _follow(self) -> None:
        number, is_alone = 0, False
        try:
            while not is_alone:
                number += 1
                match self._mail.read(number):
                    case ProposalMessage() as message:
                        self._on_proposal(number, message)
                    case NoticeMessage() | LeaveMessage() as message:
                        self._on_notice(number, message)
                    case SoonMessage():
                        with self._lock:
                            self._pace.hasten(time.monotonic())  # it matters on rank 0
                with self._lock:
                    is_alone = self._ballot.alone
        except BoardClosedError as error:
            self._lose(error)
        except Exception as error:  # if this thread died unseen, training would wait at each boundary
            logger.debug("the thread of the agreement ends", exc_info=True)
            self._lose(BoardClosedError(f"{type(error).__name__}: {error}"))

    def _on_proposal(self, number: int, message: ProposalMessage) -> None:
        boundary = message.boundary
        with self._lock:
            is_in_time = self._ballot.on_proposal(boundary, message.trigger)
        answer: ProposalAnswer = "late" if not is_in_time else "ready" if self._participant.is_ready() else "busy"
        verdict = self._mail.vote(number, answer, decode_proposal_answer, count_proposal, decode_proposal_verdict)
        with self._lock:
            self._ballot.on_verdict(boundary, verdict)
            self._pace.on_verdict(verdict)
            self._changed.notify_all()

    def _on_notice(self, number: int, message: NoticeMessage | LeaveMessage) -> None:
        with self._lock:
            if isinstance(message, NoticeMessage):
                now = time.monotonic()
                duty = self._ballot.on_notice(message.notice(now), now)
            else:
                duty = self._ballot.on_call()
            answer, is_known = self._ballot.answer, self._ballot.notice is not None
            self._changed.notify_all()
        if is_known:
            self._participant.on_notice()
        if duty == "share":
            self._share_figures(number)
        elif duty == "answer":
            assert answer is not None
            boundary = self._mail.vote(number, answer, decode_boundary, count_notice, decode_boundary)
            with self._lock:
                leaves_in_pause = self._ballot.on_leave(boundary)
                self._changed.notify_all()
            if leaves_in_pause:
                self._participant.leave_in_pause()

    def _share_figures(self, number: int) -> None:
        """Post this rank's measurements. On rank 0, collect those of all ranks, and decide for the first time."""
        self._mail.post_figures(number, self._participant.figures())
        with self._lock:
            notice, step, num_ahead = self._ballot.notice, self._pace.step, self._pace.num_ahead()
        if notice is None or not self._is_leader:
            return
        act: Act
        timeout_s = min(VERDICT_WAIT_S, notice.leave_by - time.monotonic())
        try:
            self._participant.merge(self._mail.read_figures(number, max(0.0, timeout_s)))
        except Exception as error:  # noqa: BLE001 - a stranger may have written them
            logger.warning("the measurements of the ranks are not known, so all leave at once: %s", error)
            act = "leave"
        else:
            # Decided here first, because a step may take longer than there is time.
            act = self._participant.decide(step, notice, num_ahead)
        with self._lock:
            calls = self._ballot.on_act(act)
        if calls:
            self._mail.send_aside(LeaveMessage())

    def _lose(self, error: BoardClosedError) -> None:
        """Continue alone, because there is no board any more."""
        with self._lock:
            if self._ballot.alone:
                return
            self._loss = str(error)
            self.lost = error if isinstance(error, RankLostError) else None
            self._ballot.lose_board()
            is_known = self._ballot.notice is not None
            self._changed.notify_all()
        if is_known:
            self._participant.on_notice()
        if isinstance(error, RankLostError):
            self._participant.on_lost(error)
