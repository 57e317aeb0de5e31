"""The end of a process whose training thread is stuck, because another rank is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from ..agreement import Agreement
from ..errors import Preempted
from ..machine.threads import NoThreadError, start_thread
from ..ranks import RankLostError
from .phase import Phase, PhaseTracker
from .way_out import WayOut

logger = logging.getLogger(__name__)

STUCK_S: Final = 30.0
"""Seconds without a call of the session after which the training thread counts as stuck, if a rank is lost."""

OWN_ERROR_S: Final = 5.0
"""Seconds from the moment when the loss is known, in which the training thread may end with an error of its own."""

CODE: Final = 1
"""Exit code of the process, unless there is a notice."""


class LostRank:
    """
    Ends the process if a rank is lost and the training thread makes no progress.

    The training thread may be stuck in a collective with that rank. If a machine vanished, no packet ends the
    collective. Its timeout is half an hour with gloo, and the launcher waits for the process meanwhile.

    Args:
        agreement: Knows whether there is a notice.
        phase: The phase of the session, and when the training thread has called it. A session that leaves or is closed
            ends in its own way, and a rank that was left behind needs no other.
        way_out: Ends the process, on the thread ``spot-lost-rank``.
        describe_stored: Returns words for the newest step that is stored.
    """

    def __init__(
        self, agreement: Agreement, phase: PhaseTracker, way_out: WayOut, describe_stored: Callable[[], str]
    ) -> None:
        self._agreement = agreement
        self._phase = phase
        self._way_out = way_out
        self._describe_stored = describe_stored

    def begin(self, loss: RankLostError) -> None:
        """Look at the training thread from now on, because of *loss*."""
        looks = threading.Thread(target=self._run, args=(loss, time.monotonic()), name="spot-lost-rank", daemon=True)
        try:
            start_thread(looks)
        except NoThreadError as error:
            logger.warning("nothing ends this process if its training thread is stuck: %s", error)

    def _run(self, loss: RankLostError, known_at: float) -> None:
        while (left_s := max(STUCK_S - self._phase.still_s, known_at + OWN_ERROR_S - time.monotonic())) > 0:
            if self._phase.wait_until(frozenset({Phase.LEAVING, Phase.LEFT_BEHIND, Phase.CLOSED}), min(left_s, 1.0)):
                return
        code = CODE if self._agreement.notice is None else Preempted.EXIT_CODE
        logger.error(
            "%s, and this rank has made no progress for %.0f s, so this process ends with %d. Let the launcher "
            "start the ranks again: %s",
            loss,
            self._phase.still_s,
            code,
            self._describe_stored(),
        )
        self._way_out.end_process(code)
