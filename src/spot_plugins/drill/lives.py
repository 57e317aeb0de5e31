"""The facts of a drill: what each process life of the training did, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..fingerprints.record import StepRecord
from ..fingerprints.ring import RingId
from ..fingerprints.seen import Seen
from .target import Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultEnd:
    """The end of a fault that the training has survived, and what had become of the training by then."""

    at: float
    """Monotonic time."""
    step: int
    """The last step that was done."""
    committed: int
    """The newest step in the store. 0 if there was none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Injected:
    """A fault that was injected."""

    fault: Fault
    told: str
    """The sentence on what was done, for people."""
    at: float
    """Monotonic time."""
    step: int
    """The last step that was seen before it."""
    committed: int
    """The newest step in the store before it that is intact. 0 if there was none."""
    damaged: int | None = None
    """The step whose bytes in the store it has changed."""
    limit_s: float
    """Seconds after which the machine was taken."""
    end: FaultEnd | None = None
    """The end of a fault that the training has survived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LifeLog:
    """The facts of one life that are read after it, from the event log of the run, from its store and its folder."""

    start_step: int | None = None
    """The step after which it trained, 0 on a first run. None if it trained nothing."""
    has_notice: bool = False
    """True if a session has received a notice or a signal."""
    rejected: Mapping[int, str] = field(default_factory=dict)
    """Steps that are damaged, with the reasons."""
    committed: int = 0
    """The newest step in the store, after the last process was gone."""
    refusals: tuple[str, ...] = ()
    """The reasons for which a write of a step has failed."""
    has_left: bool = False
    """True if sessions were about to end because of it, and all of them had stored their shares of the last step."""
    jumped_s: float = 0.0
    """Seconds by which the wall clock of its records has jumped."""
    seen: Mapping[RingId, Mapping[int, Seen]] = field(default_factory=dict)
    """Its steps as they were seen beside their fingerprints, by attempt and rank."""


@dataclass(kw_only=True, slots=True)
class Life:
    """One start of the command, until all its processes were gone. Times are monotonic."""

    number: int
    """Counted from 1."""
    command: Sequence[str]
    output: Path
    """File with all that it printed."""
    began_at: float
    ended_at: float = 0.0
    gone_at: float = 0.0
    """Time at which the last process was gone."""
    exit_code: int | None = None
    """Negative for a signal. None if it was killed because it hung or the machine was taken."""
    log: LifeLog = field(default_factory=LifeLog)
    records: dict[RingId, Mapping[int, StepRecord]] = field(default_factory=dict)
    """The fingerprints of its steps, by attempt and rank."""
    reached_at: dict[int, float] = field(default_factory=dict)
    """Time at which each step was seen."""
    injected: list[Injected] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Hangs, and processes that remained."""

    @property
    def reached_step(self) -> int:
        """The last step that was done. 0 if there is none."""
        return max((step for records in self.records.values() for step in records), default=self.log.start_step or 0)

    @property
    def ending(self) -> Injected | None:
        """The fault that ended it."""
        return next((each for each in self.injected if each.fault.ends_training), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The lives of a training, and the place of its run."""

    lives: tuple[Life, ...]
    url: str
    """URL of the run, in the folder of the drill. Empty if the training has never opened a session."""
    words: tuple[str, ...]
    """Warnings and errors of its sessions, each once."""
    left: tuple[tuple[Fault, int], ...] = ()
    """Faults that were planned and not injected, with their steps."""
