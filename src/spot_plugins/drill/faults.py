"""
Faults as values. Each can be begun and ended on a :class:`~.target.Target`, the training that it hits.

``spot drill --faults`` knows those of :data:`FAULTS` by their names. Tests may build others, such as a SIGKILL to a
certain rank.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..format.commit import committed_steps, read_manifest
from ..format.keys import rank_manifest_key
from .inner_faults import ClockJump, FullDisk, ReadOnlyDisk, SlowDisk, write_whole
from .target import Fault, PlainFault, Target

OUTAGE_S: Final = 5.0
"""Seconds for which the store refuses everything."""

PAUSE_S: Final = 5.0
"""Seconds for which all processes stand still."""

SECOND_S: Final = 3.0
"""Longest time in seconds from a signal to a second one. Most times that are drawn are much shorter."""

READ_S: Final = 2.0
"""Seconds until a training has read a notice file, which it looks for each second."""


@dataclass(frozen=True, slots=True)
class Signal(PlainFault):
    """A signal to the command, as a scheduler sends it. What is left after the grace period is killed."""

    name: str = "sigterm"
    is_notice: bool = True
    number: signal.Signals = signal.SIGTERM

    def begin(self, target: Target) -> str:
        """Send it."""
        os.kill(target.command, self.number)
        return f"{self.number.name} to the command"


@dataclass(frozen=True, slots=True)
class TwoSignals(PlainFault):
    """A SIGTERM to the command, and a second signal while the training leaves. It must not leave any sooner."""

    name: str = "two-signals"
    is_notice: bool = True
    second: signal.Signals | None = None
    """The second signal. None: SIGTERM or SIGINT is drawn."""

    def begin(self, target: Target) -> str:
        """Send both, unless the command ends in between."""
        second = self.second or target.random.choice((signal.SIGTERM, signal.SIGINT))
        # Small models are saved in tenths of a second, and the interpreter may need seconds to end.
        after_s = min(SECOND_S, target.grace_s / 2) * target.random.random() ** 3
        os.kill(target.command, signal.SIGTERM)
        # wait: SECOND_S; the second signal is sent
        if target.wait(after_s):
            return f"SIGTERM to the command, which had ended before a second signal {after_s:.1f} s later"
        os.kill(target.command, second)
        return f"SIGTERM to the command, and {second.name} {after_s:.1f} s later"


@dataclass(frozen=True, slots=True)
class KillRank(PlainFault):
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
class KillLauncher(PlainFault):
    """A SIGKILL to the command, which is a launcher. Its ranks must not train on, because nobody would end them."""

    name: str = "agent-kill"
    kills_launcher: bool = True

    def begin(self, target: Target) -> str:
        """Send it."""
        os.kill(target.command, signal.SIGKILL)
        return "SIGKILL to the launcher, and to none of its ranks"


@dataclass(frozen=True, slots=True)
class Notice(PlainFault):
    """A notice of a cloud with a deadline, and no signal. What is left at the deadline is killed."""

    name: str = "notice"
    is_notice: bool = True

    def limit_s(self, target: Target) -> float:
        """Return the time of the notice, which counts from the moment at which the training has read the file."""
        return target.notice_s + READ_S

    def begin(self, target: Target) -> str:
        """Write the notice file."""
        write_whole(target.notice_file, json.dumps({"grace_seconds": target.notice_s}))
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
class KillPusher(PlainFault):
    """A SIGKILL to one pusher process. Its rank starts another one, and training continues."""

    name: str = "pusher-kill"
    ends_training: bool = False

    def begin(self, target: Target) -> str:
        """Send it."""
        os.kill(target.random.choice(target.pushers), signal.SIGKILL)
        return "SIGKILL to a pusher process"


@dataclass(frozen=True, slots=True)
class Reboot(PlainFault):
    """The machine restarts without a notice: all processes are killed at once, pushers too. The local disk remains."""

    name: str = "reboot"

    def begin(self, target: Target) -> str:
        """Kill everything."""
        target.signal_all(signal.SIGKILL)
        return "SIGKILL to all processes, and the local copies kept"


@dataclass(frozen=True, slots=True)
class HostLoss(PlainFault):
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
class Corruption(HostLoss):
    """The loss of a host, after which an object of the newest step has changed in the store."""

    name: str = "corruption"
    damages_newest: bool = True

    def begin(self, target: Target) -> str:
        """Kill everything, and invert the second half of an object that rank 0 has stored."""
        if len(committed_steps(target.store)) < 2:
            raise LookupError  # it is too early, because there would be no step to fall back on
        HostLoss.begin(self, target)
        store = target.store
        newest = committed_steps(store)[0]
        step_id, world_size = newest.step_id, newest.world_size
        blobs = read_manifest(store, step_id, 0, world_size).blobs
        # Frozen blobs are not below the step, because older steps need them too.
        keys = [blob.key for blob in blobs if blob.key.startswith(step_id.prefix)]
        key = target.random.choice([rank_manifest_key(step_id, 0, world_size), *keys])
        data = store.get(key)
        half = len(data) // 2
        store.put(key, data[:half] + bytes(255 - byte for byte in data[half:]))
        return f"SIGKILL to all processes, the local copies removed, and {key} changed in the store"


@dataclass(frozen=True, slots=True)
class StoreOutage(PlainFault):
    """The store refuses everything for a while. Training continues."""

    name: str = "store-outage"
    ends_training: bool = False
    refusal: str = "(ELOOP)"
    lasts_s: float = OUTAGE_S

    def begin(self, target: Target) -> str:
        """Let the link to the store lead to itself, so that each request fails."""
        _point(target.store_link, target.store_link.name)
        return f"the store refuses everything for {self.lasts_s:.0f} s"

    def end(self, target: Target) -> None:
        """Let the link lead to the store again."""
        _point(target.store_link, store_directory(target.store_link).name)


@dataclass(frozen=True, slots=True)
class Freeze(PlainFault):
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

_OTHERS: Final[tuple[Fault, ...]] = (
    KillPusher(),
    Reboot(),
    TwoSignals(),
    EmptyNotice(),
    Corruption(),
    KillLauncher(),
    FullDisk(),
    ReadOnlyDisk(),
    SlowDisk(),
    ClockJump(),
)

FAULTS: Final[Mapping[str, Fault]] = {each.name: each for each in (*DEFAULT_FAULTS, *_OTHERS)}
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
