"""The two sides of a fault: what it is, and the training that it hits."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..store import ObjectStore


class Target(Protocol):
    """A training that runs, as far as a fault touches it."""

    random: random.Random
    """The source of all choices."""
    grace_s: float
    """Seconds from a signal until everything is killed."""
    notice_s: float
    """Seconds from a notice until everything is killed."""

    @property
    def command(self) -> int:
        """Process id of the command."""
        ...

    @property
    def ranks(self) -> Mapping[int, int]:
        """Process ids of the ranks that run, by rank."""
        ...

    @property
    def pushers(self) -> Sequence[int]:
        """Process ids of the pusher processes that run."""
        ...

    @property
    def notice_file(self) -> Path:
        """The file whose appearance is a notice."""
        ...

    @property
    def local_directory(self) -> Path:
        """The directory of all local copies."""
        ...

    @property
    def store_link(self) -> Path:
        """The symbolic link through which the training reaches its store."""
        ...

    @property
    def disk_file(self) -> Path:
        """The file that names a fault of the disk, see :mod:`spot_plugins.store.drilled_disk`."""
        ...

    @property
    def clock_file(self) -> Path:
        """The file that says by how much the wall clock is off, see :mod:`spot_plugins.clock`."""
        ...

    @property
    def store(self) -> ObjectStore:
        """The store of the run, also while the link leads nowhere. LookupError: No session has been opened yet."""
        ...

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the training, pushers included."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the command. Return whether it has ended."""
        ...


class Fault(Protocol):
    """A fault. Its fields are properties, so that a frozen value has them."""

    @property
    def name(self) -> str:
        """Name of the fault, as in ``--faults``."""
        ...

    @property
    def ends_training(self) -> bool:
        """True if the processes end because of it."""
        ...

    @property
    def is_notice(self) -> bool:
        """True if the training has time to save, so that no step may be lost."""
        ...

    @property
    def takes_machine(self) -> bool:
        """True if the machine is taken after a notice, so that what still runs is killed and has not hung."""
        ...

    @property
    def kills_launcher(self) -> bool:
        """True if the launcher is killed, so that its ranks have the grace period to leave after the command."""
        ...

    @property
    def damages_newest(self) -> bool:
        """True if the newest committed step cannot be used afterwards, so that the one before has to be."""
        ...

    @property
    def lasts_s(self) -> float:
        """Least seconds from begin to end of a fault that the training survives."""
        ...

    @property
    def refusal(self) -> str:
        """Text that is in each message on what it refuses. Empty if it refuses nothing."""
        ...

    @property
    def hits_saves(self) -> bool:
        """True if steps may be stored more slowly or not at all, so that one has to be stored after its end."""
        ...

    @property
    def jump_s(self) -> float:
        """Seconds by which it sets the wall clock. 0: it does not."""
        ...

    def limit_s(self, target: Target) -> float:
        """Return the seconds that the training has to save, for a fault that leaves time."""
        ...

    def has_hit(self, target: Target) -> bool:
        """Return whether it has had an effect, for a fault that the training survives. Before, it does not end."""
        ...

    def begin(self, target: Target) -> str:
        """
        Inject the fault. Return what was done, for people.

        Raises:
            LookupError, ProcessLookupError: There is nothing that it could hit, so nothing was done.
        """
        ...

    def end(self, target: Target) -> None:
        """Take it back after :attr:`lasts_s`, or after all processes have ended."""
        ...


@dataclass(frozen=True, slots=True)
class PlainFault:
    """Base of faults that need no end."""

    name: str
    ends_training: bool = True
    is_notice: bool = False
    takes_machine: bool = True
    kills_launcher: bool = False
    damages_newest: bool = False
    lasts_s: float = 0.0
    refusal: str = ""
    hits_saves: bool = False
    jump_s: float = 0.0

    def limit_s(self, target: Target) -> float:
        """Return the grace period."""
        return target.grace_s

    def has_hit(self, target: Target) -> bool:
        """Return True, because it hits at once."""
        return True

    def end(self, target: Target) -> None:
        """Do nothing."""
