"""The end of a process that does not leave by itself after a notice."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from ..agreement import Agreement
from ..machine.threads import NoThreadError, start_thread
from .phase import Phase, PhaseTracker

logger = logging.getLogger(__name__)

LAST_RESORT_S: Final = 30.0
"""Seconds after the deadline of a notice until the process is ended."""


class LastResort:
    """
    Ends the process if it still trains long after the deadline of a notice.

    The training thread may be stuck in a collective with a rank that is gone. It never returns to Python there, and
    the launcher waits for it.

    Args:
        agreement: Knows the notice.
        phase: The phase of the session. A session that is closed ends in its own way.
        end: Ends the process. Called on the thread ``spot-last-resort``.
    """

    def __init__(self, agreement: Agreement, phase: PhaseTracker, end: Callable[[], None]) -> None:
        self._agreement = agreement
        self._phase = phase
        self._end = end
        self._lock = threading.Lock()
        self._has_begun = False

    def begin(self) -> None:
        """Start to count, because there is a notice. From any thread, any number of times."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                try:
                    start_thread(threading.Thread(target=self._run, name="spot-last-resort", daemon=True))
                except NoThreadError as error:
                    logger.warning("nothing ends this process if its training thread is stuck: %s", error)

    def _run(self) -> None:
        while (left_s := self._left_s()) > 0:  # an earlier deadline may become known meanwhile
            if self._phase.wait_until(frozenset({Phase.CLOSED}), min(left_s, 1.0)):
                return
        logger.error(
            "the training thread did not leave within %.0f s after the deadline, so this process ends", LAST_RESORT_S
        )
        self._end()

    def _left_s(self) -> float:
        notice = self._agreement.notice
        assert notice is not None
        return notice.deadline + LAST_RESORT_S - time.monotonic()
