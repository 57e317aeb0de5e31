"""The probe in a training: it interrupts the training at a place that a situation names, and records what it does."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

from contract.hosts.situation import Interruption

from spot_plugins.events import Committed, NoticeReceived


class KilledError(Exception):
    """Ends a life without a chance to save, as the loss of a machine does."""


@dataclass(kw_only=True)
class Probe:
    """The eyes and hands of the suite in one life. An adapter calls it where the host comes to the place."""

    interruption: Interruption | None
    rank: int = 0
    rows: list[list[Any]] = field(default_factory=list)
    validations: list[list[Any]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    host: Any = None
    """The object of the library that the adapter made. It has ``resumed_from`` and ``last_committed_step``."""

    def __post_init__(self):
        self._times = {"batch": 0, "validation": 0, "epoch end": 0}
        self._noticed = threading.Event()
        self._committed = threading.Event()

    def come_to(self, place):
        """Interrupt the life if its interruption is here. Places: ``batch``, ``validation`` and ``epoch end``."""
        self._times[place] += 1
        due = self.interruption
        if due is None or (due.place, due.number, due.rank) != (place, self._times[place], self.rank):
            return
        if due.kind == "crash":
            raise KilledError
        if due.kind == "SIGKILL":
            assert self._committed.wait(300), "nothing was committed"  # so that there is something to resume from
        for _ in range(2 if due.kind == "two notices" else 1):
            os.kill(os.getpid(), signal.SIGKILL if due.kind == "SIGKILL" else signal.SIGTERM)
        assert self._noticed.wait(300), "the notice was not received"

    def trained(self, epoch, step, samples, rates, loss):
        """Record a batch. *step* is the number of optimizer steps before it, as the host counts them."""
        self.rows.append([epoch, step, samples.tolist(), list(rates), float(loss.detach()).hex()])

    def validated(self, epoch, step, number, loss):
        """Record a batch of a validation."""
        self.validations.append([epoch, step, number, float(loss).hex()])

    def on_event(self, event):
        """Record an event of the library."""
        self.events.append(event)
        if isinstance(event, NoticeReceived):
            self._noticed.set()
        if isinstance(event, Committed):
            self._committed.set()
