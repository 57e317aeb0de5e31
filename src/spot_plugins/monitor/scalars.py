"""The figures of a run as scalars for the loggers of a host, and for the logging of Python."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from ..errors import SpotError
from ..eventlog.watchers import Watched, Watcher
from ..events import Committed, Event, SharesCounted

if TYPE_CHECKING:
    from .tally import RunFigures, Tally

logger = logging.getLogger(__name__)

Write: TypeAlias = Callable[[dict[str, float], int], object]
"""Function that writes values for a step. Called on the training thread."""


class Scalars(Watcher):
    """
    Figures of the run so far, for each step that all ranks have stored. On rank 0; other ranks have none.

    A stored step is never trained again, so no step is written twice, whatever ends the process. Nothing is written
    until the event log of earlier attempts is read.
    """

    def __init__(self) -> None:
        self._tally: Tally | None = None
        self._counts_shares = False
        self._stored: int | None = None

    def __call__(self, event: Event) -> None:
        """Count *event*."""
        if self._tally is None:
            return
        self._tally.on_event(event)
        match event:
            case Committed(step=step) if not self._counts_shares:
                self._is_stored(step)
            case SharesCounted(visible_step=int(step)):
                self._is_stored(step)

    @property
    def are_shown(self) -> bool:
        """True if the logging of Python shows the figures, so that a loop without trackers wants them too."""
        return logger.isEnabledFor(logging.INFO)

    def open(self, watched: Watched) -> None:
        """Begin with a session. The log of earlier attempts is read on a thread of its own."""
        if watched.rank == 0:
            from .tally import Tally  # its imports take time, and a loop without trackers needs none of them

            self._tally = tally = Tally(watched)
            self._counts_shares = watched.world_size > 1
            threading.Thread(target=_read, args=(tally,), name="spot-figures", daemon=True).start()

    def begin(self, step: int | None) -> None:
        """Take note that training begins after *step*."""
        if self._tally is not None:
            self._tally.begin(step)

    def take(self) -> dict[str, float]:
        """Return the figures if a step was stored since the last call, else nothing. In a quiet step it is one test."""
        if self._stored is None or self._tally is None or (figures := self._tally.figures()) is None:
            return {}
        self._stored = None
        return _values(figures)

    def write(self, write: Write) -> None:
        """Call *write* with the figures and their step, if a step was stored since the last call. It never raises."""
        step = self._stored
        if step is None or not (values := self.take()):
            return
        try:
            write(values, step)
        except Exception:  # a logger must not end a training
            self._tally = None
            logger.exception("a logger does not take the figures of the run; it gets no more of them")

    def _is_stored(self, step: int) -> None:
        """Remember that *step* is stored, and log the figures."""
        self._stored = step
        if self.are_shown and self._tally is not None and (figures := self._tally.figures()) is not None:
            values = ", ".join(f"{name}={value:.4g}" for name, value in _values(figures).items())
            logger.info("step %s is stored: %s", step, values)


def _values(figures: RunFigures) -> dict[str, float]:
    return {
        "spot/goodput": figures.goodput,
        "spot/stall_s": figures.stall_s,
        "spot/lost_steps": float(figures.lost_steps),
        "spot/interruptions": float(figures.num_interruptions),
    }


def _read(tally: Tally) -> None:
    with suppress(SpotError):  # without the earlier attempts the figures would be wrong, so there are none
        tally.read_earlier()
