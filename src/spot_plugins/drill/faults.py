"""
Faults as values. Each can be begun and ended on a :class:`Target`, the training that it hits.

``spot drill --faults`` knows those of :data:`FAULTS` by their names. Tests may build others, such as a SIGKILL to a
certain rank.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ..errors import ConfigError

OUTAGE_S: Final = 5.0
"""Seconds for which the store refuses everything."""

PAUSE_S: Final = 5.0
"""Seconds for which all processes stand still."""

OUTAGE_ERROR: Final = "(ELOOP)"
"""Text that is in each message on the refusals of a store outage."""

SECOND_S: Final = 3.0
"""Longest time in seconds from a signal to a second one. Shorter times are drawn too, so that it comes at any moment of
leaving."""

READ_S: Final = 2.0
"""Seconds until a training has read a notice file, which it looks for each second."""


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
    def lasts_s(self) -> float:
        """Seconds from begin to end of a fault that the training survives."""
        ...

    def limit_s(self, target: Target) -> float:
        """Return the seconds that the training has to save, for a fault that leaves time."""
        ...

    def begin(self, target: Target) -> str:
        """Inject the fault. Return what was done, for people."""
        ...

    def end(self, target: Target) -> None:
        """Take it back after :attr:`lasts_s`, or after all processes have ended."""
        ...


@dataclass(frozen=True, slots=True)
class _Plain:
    """Base of faults that need no end."""

    name: str
    ends_training: bool = True
    is_notice: bool = False
    takes_machine: bool = True
    lasts_s: float = 0.0

    def limit_s(self, target: Target) -> float:
        """Return the grace period."""
        return target.grace_s

    def end(self, target: Target) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Signal(_Plain):
    """A signal to the command, as a scheduler sends it. What is left after the grace period is killed."""

    name: str = "sigterm"
    is_notice: bool = True
    number: signal.Signals = signal.SIGTERM

    def begin(self, target: Target) -> str:
        """Send it."""
        os.kill(target.command, self.number)
        return f"{self.number.name} to the command"


@dataclass(frozen=True, slots=True)
class TwoSignals(_Plain):
    """A SIGTERM to the command, and a second signal while the training leaves. It must not leave any sooner."""

    name: str = "two-signals"
    is_notice: bool = True
    second: signal.Signals | None = None
    """The second signal. None: SIGTERM or SIGINT is drawn."""

    def begin(self, target: Target) -> str:
        """Send both, unless the command ends in between."""
        second = self.second or target.random.choice((signal.SIGTERM, signal.SIGINT))
        after_s = target.random.uniform(0, min(SECOND_S, target.grace_s / 2))
        os.kill(target.command, signal.SIGTERM)
        # wait: SECOND_S; the second signal is sent
        if target.wait(after_s):
            return f"SIGTERM to the command, which had ended before a second signal {after_s:.1f} s later"
        os.kill(target.command, second)
        return f"SIGTERM to the command, and {second.name} {after_s:.1f} s later"


@dataclass(frozen=True, slots=True)
class KillRank(_Plain):
    """A SIGKILL to one rank, as when memory runs out. The pusher of the rank and the other ranks continue."""

    name: str = "sigkill"
    rank: int | None = None
    """The rank. None: one is drawn."""

    def begin(self, target: Target) -> str:
        """Send it."""
        ranks = target.ranks
        rank = target.random.choice(sorted(ranks)) if self.rank is None else self.rank
        os.kill(ranks[rank], signal.SIGKILL)
        return f"SIGKILL to rank {rank}"


@dataclass(frozen=True, slots=True)
class Notice(_Plain):
    """A notice of a cloud with a deadline, and no signal. What is left at the deadline is killed."""

    name: str = "notice"
    is_notice: bool = True

    def limit_s(self, target: Target) -> float:
        """Return the time of the notice, which counts from the moment at which the training has read the file."""
        return target.notice_s + READ_S

    def begin(self, target: Target) -> str:
        """Write the notice file."""
        unfinished = target.notice_file.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"grace_seconds": target.notice_s}))
        unfinished.replace(target.notice_file)
        return f"a notice that the machine is taken in {target.notice_s:.0f} s"


@dataclass(frozen=True, slots=True)
class EmptyNotice(Notice):
    """A notice of a cloud after which the machine is not taken. The training leaves by itself all the same."""

    name: str = "notice-only"
    takes_machine: bool = False

    def begin(self, target: Target) -> str:
        """Write the notice file."""
        return f"{Notice.begin(self, target)}, and nobody takes it"


@dataclass(frozen=True, slots=True)
class KillPusher(_Plain):
    """A SIGKILL to one pusher process. Its rank starts another one, and training continues."""

    name: str = "pusher-kill"
    ends_training: bool = False

    def begin(self, target: Target) -> str:
        """Send it."""
        os.kill(target.random.choice(target.pushers), signal.SIGKILL)
        return "SIGKILL to a pusher process"


@dataclass(frozen=True, slots=True)
class Reboot(_Plain):
    """The machine restarts without a notice: all processes are killed at once, pushers too. The local disk remains."""

    name: str = "reboot"

    def begin(self, target: Target) -> str:
        """Kill everything."""
        target.signal_all(signal.SIGKILL)
        return "SIGKILL to all processes, and the local copies kept"


@dataclass(frozen=True, slots=True)
class HostLoss(_Plain):
    """The machine vanishes: all processes are killed at once, pushers too, and the local disk is gone."""

    name: str = "host-loss"

    def begin(self, target: Target) -> str:
        """Kill everything."""
        target.signal_all(signal.SIGKILL)
        return "SIGKILL to all processes, and the local copies removed"

    def end(self, target: Target) -> None:
        """Remove what was on the local disk."""
        shutil.rmtree(target.local_directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class StoreOutage(_Plain):
    """The store refuses everything for a while. Training continues."""

    name: str = "store-outage"
    ends_training: bool = False
    lasts_s: float = OUTAGE_S

    def begin(self, target: Target) -> str:
        """Let the link to the store lead to itself, so that each request fails."""
        _point(target.store_link, target.store_link.name)
        return f"the store refuses everything for {self.lasts_s:.0f} s"

    def end(self, target: Target) -> None:
        """Let the link lead to the store again."""
        _point(target.store_link, store_directory(target.store_link).name)


@dataclass(frozen=True, slots=True)
class Freeze(_Plain):
    """All processes stand still for a while, as when a virtual machine is moved. Training continues."""

    name: str = "pause"
    ends_training: bool = False
    lasts_s: float = PAUSE_S

    def begin(self, target: Target) -> str:
        """Stop them."""
        target.signal_all(signal.SIGSTOP)
        return f"all processes stand still for {self.lasts_s:.0f} s"

    def end(self, target: Target) -> None:
        """Let them continue."""
        target.signal_all(signal.SIGCONT)


DEFAULT_FAULTS: Final[tuple[Fault, ...]] = (
    Signal(),
    KillRank(),
    Notice(),
    HostLoss(),
    StoreOutage(),
    Freeze(),
)
"""The faults of ``spot drill`` by default, in the order in which they are injected."""

FAULTS: Final[Mapping[str, Fault]] = {
    each.name: each for each in (*DEFAULT_FAULTS, KillPusher(), Reboot(), TwoSignals(), EmptyNotice())
}
"""All faults of ``spot drill``, by name."""


def faults_of(text: str) -> tuple[Fault, ...]:
    """
    Return the faults whose names *text* has, with commas between them.

    Raises:
        ConfigError: There is no such fault.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in FAULTS]:
        raise ConfigError(f"faults={text}: {unknown[0]!r} is no fault. Give some of {','.join(FAULTS)}")
    return tuple(FAULTS[name] for name in names)


def store_directory(link: Path) -> Path:
    """Return the directory that the link to the store leads to, while the store works."""
    return link.with_name(f"{link.name}-stored")


def _point(link: Path, target: str) -> None:
    unfinished = link.with_suffix(".tmp")
    unfinished.symlink_to(target)
    unfinished.replace(link)
