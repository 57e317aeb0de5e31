"""The training of this rank, as the agreement sees it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..agreement import Act, Notice
from ..events import EventBus, SaveDeferred
from ..push import Pusher
from ..ranks import Json, RankLostError
from ..save import Saver
from .last_resort import LastResort
from .lost_rank import LostRank
from .measurements import Measurements
from .way_out import WayOut

logger = logging.getLogger(__name__)


class TrainingParticipant:
    """The :class:`~.agreement.decision.Participant` of a session. It answers from threads of the agreement too."""

    way_out: WayOut
    """The way out of the session. It is set before the agreement is opened, and needs the agreement to be built."""

    last_resort: LastResort | None = None
    """Ends this process if it does not leave by itself. None if the rank may stay. It is set with :attr:`way_out`."""

    lost_rank: LostRank
    """Ends this process if its training thread is stuck because a rank is lost. It is set with :attr:`way_out`."""

    def __init__(self, saver: Saver, pusher: Pusher, measurements: Measurements, bus: EventBus) -> None:
        self._saver = saver
        self._pusher = pusher
        self._measurements = measurements
        self._bus = bus
        self._num_deferred = 0

    def is_ready(self) -> bool:
        """Return whether an earlier save is done, so that another one may begin."""
        return self._saver.has_room and not self._pusher.ledger.is_busy

    def on_deferred(self, step: int) -> None:
        """Emit that *step* was due and is not saved, because an earlier one is still being pushed."""
        self._num_deferred += 1
        logger.info("step %s is not saved, because an earlier one is still being pushed", step)
        self._bus.emit(SaveDeferred(step=step, num_deferred=self._num_deferred))

    def on_notice(self) -> None:
        """Make sure that this process ends, though its training thread may be stuck in a collective."""
        if self.last_resort is not None:
            self.last_resort.begin()

    def on_lost(self, loss: RankLostError) -> None:
        """Make sure that this process ends, if its training thread is stuck in a collective with the lost rank."""
        self.lost_rank.begin(loss)

    def leave_in_pause(self) -> None:
        """Leave with the step of the pause."""
        self.way_out.leave_in_pause()

    def figures(self) -> Json:
        """Return what this rank has measured."""
        return self._measurements.figures()

    def merge(self, figures: Sequence[Json]) -> None:
        """Merge the figures of all ranks into the plans of this rank."""
        self._measurements.merge(figures)

    def decide(self, step: int, notice: Notice, num_ahead: int) -> Act:
        """Return what to do after *step*, with the time that *notice* leaves."""
        return self._measurements.decide(step, notice, num_ahead)
