"""The end of the time that a notice leaves, because the first save has failed."""

from __future__ import annotations

import logging

from ..agreement import Agreement
from ..events import Event, PushFailing, SaveAbandoned
from .measurements import Measurements

logger = logging.getLogger(__name__)


class FirstSave:
    """
    Makes all ranks leave if a save of this rank fails after a notice, before one was measured. It is a subscriber.

    Training continues on the strength of that save, which can then never be committed. Only this rank knows that.

    Args:
        agreement: Passes it on to all ranks.
        measurements: Knows whether a save was measured. It gets each event first.
    """

    def __init__(self, agreement: Agreement, measurements: Measurements) -> None:
        self._agreement = agreement
        self._measurements = measurements

    def on_event(self, event: Event) -> None:
        """Take *event*, on any thread."""
        if not isinstance(event, SaveAbandoned | PushFailing) or not self._measurements.is_estimated:
            return
        if self._agreement.cut_short():
            logger.warning("the first save, of step %s, has failed, so all ranks leave: %s", event.step, event.reason)
