"""The way out after a notice: one last save that is made durable, and the meeting of all ranks before they end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

from ..agreement import Agreement, Notice
from ..config import SpotConfig
from ..errors import Preempted
from ..events import EventBus, Leaving
from ..program import Lines
from ..ranks import Job, Meeting, texts_of_ranks
from ..save import SavedSteps
from .listener import Listener
from .lost_shares import LostShares
from .measurements import Measurements
from .phase import PhaseTracker

_LEAVES: Final = f"leaving with code {Preempted.EXIT_CODE}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a departure."""

    step: int | None
    """Last step that this rank saved, or None."""
    is_durable: bool
    """True if this rank's part of that step reached the store in time."""
    stays: bool
    """True if this rank trains on without the ranks that leave (``on_notice="continue"``)."""


class Departure:
    """
    Makes the last step of this rank durable after a notice, once.

    In a pause two threads may ask for it: the training thread, and a thread of the agreement, because the training
    thread may be stuck in a collective with a rank that is gone. The first one does the work. The other one waits for
    the outcome.
    """

    def __init__(
        self,
        config: SpotConfig,
        job: Job,
        saved_steps: SavedSteps,
        measurements: Measurements,
        agreement: Agreement,
        listener: Listener,
        phase: PhaseTracker,
        bus: EventBus,
        lines: Lines,
        lost_shares: LostShares,
    ) -> None:
        self._config = config
        self._job = job
        self._saved_steps = saved_steps
        self._measurements = measurements
        self._agreement = agreement
        self._listener = listener
        self._phase = phase
        self._bus = bus
        self._lines = lines
        self._lost_shares = lost_shares
        self._lock = threading.Lock()
        self._outcomes: dict[int, Outcome] = {}

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Let no departure begin before the block ends, because the block stages the state to leave with."""
        with self._lock:
            yield

    def depart(self, step: int, *, is_paused: bool) -> Outcome:
        """
        Save *step* unless it is saved, and wait until it is stored and all ranks have come so far, or time is up.

        A second call for the same *step* returns the outcome of the first one. Call it only after a notice.

        Args:
            step: The step that the ranks agreed on.
            is_paused: Whether training stands still after *step*. Then the held state is saved, not the live one.
        """
        with self._lock:
            if step not in self._outcomes:
                self._outcomes[step] = self._make_durable(step, is_paused)
            return self._outcomes[step]

    def leave_by(self) -> float:
        """
        Return when to leave at the latest (monotonic). It gets earlier when a notice with an earlier end arrives.

        It is later than what the plan goes by, because a step that is stored is worth more than an orderly exit.
        """
        return self._notice().wait_until

    def _make_durable(self, step: int, is_paused: bool) -> Outcome:
        self._measurements.announce(step, self._notice())
        is_durable = self._saved_steps.push_last(step, self.leave_by, is_paused=is_paused)
        saved, notice = self._saved_steps.last, self._notice()  # an earlier end may have become known
        left_s = notice.deadline - time.monotonic()
        if not is_durable:
            self._say_unstored(saved, left_s)
        self._bus.emit(Leaving(step=saved, durable=is_durable, left_s=left_s))
        meeting = self._job.meet(self.leave_by(), None if is_durable else "the rank left before its share was stored")
        # wait: the deadline of the notice and half a second; this rank leaves without the others
        meeting.wait()
        if is_durable:
            self._say_stored(saved, meeting)
        if is_durable and self._config.acknowledge_notice:
            self._listener.acknowledge()
        stays = self._config.on_notice == "continue" and self._agreement.stay()
        if stays:
            self._phase.leave_behind()  # with the lock, so that a pause that ends now sees it
            text = f"this rank stays: it continues after step {step}, and saves nothing from now on"
            self._lines.say(text, logging.WARNING)
        elif self._config.on_notice == "continue":
            self._lines.say(_LEAVES)
        return Outcome(saved, is_durable, stays)

    @property
    def _ending(self) -> str:
        return "" if self._config.on_notice == "continue" else f"; {_LEAVES}"

    def _say_stored(self, step: int | None, meeting: Meeting) -> None:
        """
        Show on one rank that *step* is stored, or which ranks may not have stored their share of it.

        If a rank has ended, this rank stays until the others have stored that share, or time is up.
        """
        silent = "the rank does not answer" if meeting.lost is None else str(meeting.lost)
        missing = [cast("str | None", meeting.notes.get(rank, silent)) for rank in range(self._job.world_size)]
        though, why_not = "", self._saved_steps.why_no_shares
        if any(missing) and (meeting.lost is not None or meeting.is_cut_off) and step is not None:
            though = f", though {meeting.lost or 'rank 0 has ended'}"
            reasons = dict.fromkeys((rank for rank, text in enumerate(missing) if text), why_not or "")
            if why_not is None:
                reasons = self._lost_shares.finish(step, self.leave_by)
            missing = [
                f"{text or silent}, and no other rank has stored its share: {reasons[rank]}"
                if rank in reasons
                else None
                for rank, text in enumerate(missing)
            ]
        if not self._lost_shares.is_first and not (why_not is not None and meeting.is_cut_off):
            return
        if not any(missing):
            self._lines.say(f"step {step} is stored{though}{self._ending}")
            return
        text = (
            f"step {step} may NOT be stored by all ranks: {texts_of_ranks(missing)}{self._ending}. The next attempt "
            "resumes from it if all shares are there, and else from the step before"
        )
        self._lines.say(text, logging.WARNING)

    def _say_unstored(self, step: int | None, left_s: float) -> None:
        """Show that the share of this rank is not stored."""
        if step is None:
            text = f"nothing is saved yet{self._ending}"
        else:
            text = (
                f"step {step} is NOT stored yet, {left_s:.1f} s left{self._ending}. The pusher process continues to try"
            )
        self._lines.say(text, logging.WARNING)

    def _notice(self) -> Notice:
        notice = self._agreement.notice
        assert notice is not None
        return notice
