"""
Pauses of a training, and the way out of it after a notice.

The training thread raises ``Preempted``. If it is stuck in a pause, a thread of the agreement ends the process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Final

from ..agreement import Agreement, Decision
from ..data import end_shielded_workers
from ..errors import Preempted, StoreError
from ..launch import roster
from ..notices import NOT_OBEYED
from ..ranks import BoardClosedError, Job
from ..save import SavedSteps, Saver
from .departure import Departure
from .listener import Listener
from .measurements import Measurements
from .phase import Phase, PhaseTracker

logger = logging.getLogger(__name__)

STUCK_S: Final = 1.0
"""Longest time in seconds that the training thread may take to leave a pause once all ranks are done."""

NOTICE_S: Final = 1.0
"""Longest time in seconds in which this rank learns of a notice because of which another rank has left."""

POLL_S: Final = 0.02
"""Seconds between two looks for notices in a wait."""


class WayOut:
    """
    Stands still in pauses, and leaves the session after a notice.

    Args:
        phase: The phase of the session.
        job: The ranks of the job.
        agreement: The agreement of the ranks.
        listener: The owner of the signals.
        saver: Copies the state.
        saved_steps: The steps that were saved.
        measurements: The speeds of this rank.
        departure: Makes the last step durable.
        stack: Closes everything that the session opened.
    """

    def __init__(
        self,
        *,
        phase: PhaseTracker,
        job: Job,
        agreement: Agreement,
        listener: Listener,
        saver: Saver,
        saved_steps: SavedSteps,
        measurements: Measurements,
        departure: Departure,
        stack: ExitStack,
    ) -> None:
        self._phase = phase
        self._job = job
        self._agreement = agreement
        self._listener = listener
        self._saver = saver
        self._saved_steps = saved_steps
        self._measurements = measurements
        self._departure = departure
        self._stack = stack
        self._pause_step = 0  # of the newest pause

    def enter_pause(self, step: int) -> None:
        """Stage *step*, so that a notice in the pause has nothing left to copy. Weights may be swapped from now on."""
        self._phase.check("pause")
        self._pause_step = step
        with self._departure.held_off():  # a notice from now on waits until the state is staged
            self._measurements.on_pause()
            is_left_behind = self._phase.now is Phase.LEFT_BEHIND
            if not is_left_behind:
                self._phase.move(Phase.PAUSED)
            self._agreement.enter_pause()
            self._saver.fence()
            if not is_left_behind:
                self._hold(step)

    def check_pause(self) -> None:
        """Leave with the step of the pause if there is a notice. Raises as :meth:`leave`."""
        self._phase.mark()
        self._obey(self._agreement.in_pause())

    def save_pause(self) -> None:
        """Save the step of the pause, with its state at the beginning of the pause."""
        with self._departure.held_off():
            self._saved_steps.save_held(self._pause_step)

    def exit_pause(self) -> None:
        """Continue training, or leave with the step of the pause. Raises as :meth:`leave`."""
        self._obey(self._agreement.exit_pause())
        with self._departure.held_off():  # a departure that leaves this rank behind is complete, or will not begin
            if self._phase.now is Phase.PAUSED:
                self._phase.move(Phase.TRAINING)

    def hold(self, step: int, wait_s: float) -> None:
        """
        Stage *step*, so that it can still be saved after other code has changed the live state.

        It waits for room, at most *wait_s* and not after a notice. Without room nothing is staged.
        """
        deadline = time.monotonic() + wait_s
        while not (self._saver.has_room or self._agreement.notice) and time.monotonic() < deadline:
            # wait: wait_s of the caller; nothing is staged
            time.sleep(POLL_S)
        with self._departure.held_off():
            self._saver.fence()
            self._saved_steps.hold(step)

    def save(self, step: int, *, saves_live: bool) -> str | None:
        """
        Save *step*, the present one, unless it is saved. A state that was held since the step is preferred.

        Args:
            step: The step.
            saves_live: Whether the live state may be saved if none is held. In a pause it never is.

        Returns:
            The reason if it cannot be saved.
        """
        with self._departure.held_off():  # in a pause, a departure may be about to save the same state
            if self._saved_steps.has(step):
                return None
            if self._saved_steps.save_held(step):
                self._measurements.on_saved(step)
                return None
        if self._phase.now is Phase.PAUSED or not saves_live:
            return "its state was not copied when the step was done, because no memory was free for it"
        try:
            if self._saved_steps.save(step, "explicit"):
                self._measurements.on_saved(step)
        except StoreError as error:
            return error.reason
        self._agreement.saved(step)
        return None

    def _hold(self, step: int) -> None:
        try:
            self._saved_steps.hold(step)
        except BaseException:  # the block is not entered, so nothing would end the pause
            self._agreement.exit_pause()
            self._phase.move(Phase.TRAINING)
            raise

    def _obey(self, decision: Decision | None) -> None:
        if decision is not None:
            self.leave(self._pause_step)

    def wait(self, done: Callable[[], bool], step: int, deadline: float) -> None:
        """
        Wait until *done* or *deadline* (monotonic). Leave with *step* if a notice leaves no time for that.

        Raises as :meth:`leave`.
        """
        while not done() and time.monotonic() < deadline:
            if self._listener.is_pressed:
                self.leave(step)
            self._phase.mark()
            # wait: the deadline of the caller; the caller continues
            time.sleep(POLL_S)

    def leave(self, step: int) -> None:
        """
        Make *step* durable within the grace and close the session. On the training thread.

        It returns without closing if this rank is left behind (``on_notice="continue"``) and has no notice of its own.

        Raises:
            Preempted: Otherwise.
        """
        self._listener.shield(on=True)
        was = self._phase.now
        is_left_behind = was is Phase.LEFT_BEHIND
        if not is_left_behind:
            self._phase.move(Phase.LEAVING)
            is_left_behind = self._departure.depart(step, is_paused=was is Phase.PAUSED).stays
        if is_left_behind:
            self._phase.leave_behind()
            if self._agreement.notice is None:
                self._listener.shield(on=False)
                return
        self._end()
        raise Preempted(self._saved_steps.last)

    @contextmanager
    def before_training(self) -> Iterator[None]:
        """
        Close the session if the block raises ``Preempted``, because of a notice in a wait for the store.

        After a notice, a rank that waits for another one leaves in the same way once that one has left.
        """
        try:
            yield
        except (Preempted, BoardClosedError) as error:
            if isinstance(error, BoardClosedError) and not self._gets_notice():
                raise
            self._job.leave_early()
            self._end()
            raise Preempted(None) from None

    def _gets_notice(self) -> bool:
        """Return whether a rank has passed on a notice. A thread may be about to read that."""
        deadline = time.monotonic() + NOTICE_S
        while self._agreement.notice is None and time.monotonic() < deadline:
            # wait: POLL_S; it looks again, for NOTICE_S
            time.sleep(POLL_S)
        return self._agreement.notice is not None

    def _end(self) -> None:
        self._listener.release_signals(for_good=True)
        self._phase.move(Phase.CLOSED)
        self._stack.close()
        roster.leave(machine_ends=self._listener.machine_ends)

    def release_signals(self) -> None:
        """
        Give signals back at the end of a session. Obey a signal that came too late to be obeyed in another way.

        After an error it only warns, because the error has to be seen.

        Raises:
            Preempted: There was such a signal.
        """
        if not self._listener.release_signals():
            return
        if sys.exc_info()[0] is not None:
            logger.warning(NOT_OBEYED)
            return
        roster.leave(machine_ends=self._listener.machine_ends)
        raise Preempted(self._saved_steps.last)

    def leave_in_pause(self) -> None:
        """
        Leave on a thread of the agreement, while the training thread stands in a pause.

        If the training thread is stuck in a collective with a rank that is gone, it would never come to leave. Then
        this ends the process with the exit code of ``Preempted``.
        """
        outcome = self._departure.depart(self._pause_step, is_paused=True)
        if not outcome.stays and not self._phase.wait_until(frozenset({Phase.LEAVING, Phase.CLOSED}), STUCK_S):
            logger.warning("the training thread is stuck in the pause, so this process ends")
            self.end_process()

    def end_process(self, code: int = Preempted.EXIT_CODE) -> None:
        """End this process with *code*, whatever the training thread does. On any thread."""
        end_shielded_workers()
        self._job.board.close()
        if code == Preempted.EXIT_CODE:
            roster.leave(machine_ends=self._listener.machine_ends)
        os._exit(code)


class Pause:
    """
    One pause after a step, made by :meth:`~spot_plugins.session.SpotSession.pause` and entered with ``with``.

    The state of the step is staged first, so that a notice within the pause has nothing left to copy, even when weights
    are swapped meanwhile, as averaging callbacks do.
    """

    def __init__(self, way_out: WayOut, step: int) -> None:
        self._way_out = way_out
        self._step = step

    def __enter__(self) -> Pause:
        self._way_out.enter_pause(self._step)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The program may catch an ordinary error and train on. Preempted and KeyboardInterrupt end it.
        if exc is None or isinstance(exc, Exception):
            self._way_out.exit_pause()

    def check(self) -> None:
        """
        Leave if there is a notice. Call it within the pause as often as convenient.

        Raises:
            Preempted: There was a notice, and all is safe or the time is up.
        """
        self._way_out.check_pause()

    def save(self) -> None:
        """
        Save the step now, with the state that it had when the pause began. Every rank calls it in the same pause.

        It does nothing if the step is saved already, or if its state is not held.
        """
        self._way_out.save_pause()
