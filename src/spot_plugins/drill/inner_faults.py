"""Faults that this package makes in itself, because nobody may do them to the machine: of the disk and of the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..clock import wall_time
from ..eventlog.reading import read_event_log
from ..events import Committed
from ..format.attempts import newest_attempt
from ..format.keys import STEPS_PREFIX
from ..store import drilled_disk
from .target import PlainFault, Target

DISK_S: Final = 5.0
"""Least seconds for which the disk has a fault, which lasts until an object of a step was to be written."""

JUMP_S: Final = 6 * 3600.0
"""Seconds by which the wall clock jumps forward, and then back to as many before the right time."""

CLOCK_S: Final = 5.0
"""Least seconds for which the clock is ahead, which lasts until a step was stored."""


@dataclass(frozen=True, slots=True)
class _DiskFault(PlainFault):
    """
    Base of faults of the disk that has the store and the local copies. Training continues.

    They are made in the stores of this package, as errors of the kernel. What the program writes itself is not hit.
    """

    ends_training: bool = False
    lasts_s: float = DISK_S
    hits_saves: bool = True
    state: str = ""
    told: str = ""

    def begin(self, target: Target) -> str:
        """Name the fault in the file that all stores of the training look for."""
        Path(drilled_disk.hit_file(str(target.disk_file))).unlink(missing_ok=True)
        write_whole(target.disk_file, self.state)
        return self.told

    def has_hit(self, target: Target) -> bool:
        """Return whether an object of a step was to be written. Other objects, such as logs, are put more often."""
        hit = Path(drilled_disk.hit_file(str(target.disk_file)))
        return hit.exists() and any(key.startswith(STEPS_PREFIX) for key in hit.read_text().splitlines())

    def end(self, target: Target) -> None:
        """Let the disk work again."""
        target.disk_file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FullDisk(_DiskFault):
    """The disk is full: no object can be written. Reading and deleting work."""

    name: str = "disk-full"
    refusal: str = "(ENOSPC)"
    state: str = drilled_disk.FULL
    told: str = "the disk of the store and the local copies is full"


@dataclass(frozen=True, slots=True)
class ReadOnlyDisk(_DiskFault):
    """The disk is read-only, as after an error of its file system: no object can be written or deleted."""

    name: str = "disk-read-only"
    refusal: str = "(EROFS)"
    state: str = drilled_disk.READ_ONLY
    told: str = "the disk of the store and the local copies is read-only"


@dataclass(frozen=True, slots=True)
class SlowDisk(_DiskFault):
    """The disk is slow: each object takes seconds longer."""

    name: str = "disk-slow"
    state: str = drilled_disk.SLOW
    told: str = f"the disk of the store and the local copies takes {drilled_disk.SLOW_S:.0f} s longer for each object"


@dataclass(frozen=True, slots=True)
class ClockJump(PlainFault):
    """
    The wall clock jumps hours forward and, once a step was stored, hours back. Training continues.

    It is made in the one place of this package that reads the wall clock. Neither the machine nor what the program
    reads by itself is hit. The clock stays behind until the next start, at which it is right again.
    """

    name: str = "clock-jump"
    ends_training: bool = False
    lasts_s: float = CLOCK_S
    hits_saves: bool = True
    jump_s: float = JUMP_S

    def begin(self, target: Target) -> str:
        """Set it forward. The second line is for :meth:`has_hit`."""
        write_whole(target.clock_file, f"{self.jump_s}\n{time.monotonic()}\n")
        return f"the wall clock is {self.jump_s / 3600:.0f} h ahead"

    def has_hit(self, target: Target) -> bool:
        """Return whether the event log tells of a step that was stored since, at a time that is ahead."""
        began = float(target.clock_file.read_text().split()[1])
        log = read_event_log(target.store, since=newest_attempt(target.store))
        records = [each for rank in log.ranks for each in rank.records if each.monotonic > began]
        ahead = wall_time() + self.jump_s / 2
        return any(isinstance(each.entry, Committed) and each.at > ahead for each in records)

    def end(self, target: Target) -> None:
        """Set it back, before the time at which the training was started."""
        write_whole(target.clock_file, f"{-self.jump_s}\n")


def write_whole(path: Path, text: str) -> None:
    """Write *text*, so that a reader sees all of it."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
