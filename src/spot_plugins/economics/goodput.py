"""Goodput of a run on spot machines: a replay of leases, to compare one way of saving with another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Lease:
    """The time from the start of a machine to its end."""

    length_s: float
    is_preempted: bool = True
    """True if the provider took the machine. False if the run gave it back; then every trained step is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """State of a run at the end of a step after a notice."""

    left_s: float
    """Seconds until the machine is taken."""
    push_left_s: float
    """Seconds until every staged step is stored. 0 if every one is stored."""
    num_unsaved_steps: int
    """Number of steps trained since the newest staged step."""
    saved_since_notice: bool
    """True if the newest staged step was staged after the notice."""


Act: TypeAlias = Literal["train", "save", "wait"]
AtNotice: TypeAlias = Callable[[Remaining], Act]
"""Function that chooses the next act after a notice: one more step, a save, or nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """Durations of a run, in seconds, and its reaction to notices."""

    step_s: float
    save_s: float
    """Time for which training stands still for one save."""
    push_s: float
    """Time from the end of the save until the step is stored. Training continues meanwhile. Pushes never overlap."""
    restart_s: float
    """Time from the start of a lease to the first step."""
    every_s: float
    """Training time between saves. A save that is due during a push waits for the push. Infinity means no saves."""
    notice_s: float = 0.0
    """Time from the notice to the preemption."""
    at_notice: AtNotice | None = None
    """Called at the end of every step after the notice. None if the run ignores notices."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a replay."""

    goodput: float
    """Share of the paid time that was spent on steps that were kept."""
    kept_steps: int
    lost_steps: int
    """Number of steps that were trained and have to be trained again."""
    num_saves: int


def replay(run: TrainingRun, leases: Iterable[Lease]) -> Outcome:
    """
    Replay the *leases* one after the other. Each one begins at the newest stored step of the one before.

    Raises:
        ValueError: The leases are empty, or their total length is 0.
    """
    paid_s, kept, trained, num_saves = 0.0, 0, 0, 0
    for lease in leases:
        attempt = _Attempt(run, lease)
        attempt.simulate()
        paid_s += lease.length_s
        kept += attempt.kept
        trained += attempt.trained
        num_saves += attempt.num_saves
    if paid_s <= 0:
        raise ValueError("leases of no length have no goodput")
    return Outcome(kept * run.step_s / paid_s, kept, trained - kept, num_saves)


@dataclass
class _Attempt:
    """Simulation of one attempt on one lease. Times are in seconds since the start of the lease."""

    run: TrainingRun
    lease: Lease
    now: float = 0.0
    trained: int = 0
    staged: int = 0
    num_saves: int = 0
    pushes: list[tuple[float, int]] = field(default_factory=list)
    """End and step of each push."""

    @property
    def kept(self) -> int:
        """Number of steps that the next attempt does not have to train again."""
        if not self.lease.is_preempted:
            return self.trained
        return max((step for end, step in self.pushes if end <= self.lease.length_s), default=0)

    @property
    def _push_ends(self) -> float:
        return self.pushes[-1][0] if self.pushes else 0.0

    def simulate(self) -> None:
        """Train and save until the end of the lease."""
        run = self.run
        self.now = run.restart_s
        gets_notice = self.lease.is_preempted and run.at_notice is not None and run.notice_s > 0
        noticed_at = self.lease.length_s - run.notice_s if gets_notice else self.lease.length_s
        steps_per_save = math.inf if math.isinf(run.every_s) else max(1, math.ceil(run.every_s / run.step_s))
        while self.now < noticed_at:
            steps_to_notice = math.ceil((noticed_at - self.now) / run.step_s)
            num_steps = int(min(max(1, steps_per_save - (self.trained - self.staged)), steps_to_notice))
            if not self._train(num_steps):
                return
            is_due = self.trained - self.staged >= steps_per_save
            if is_due and self.now < noticed_at and self._push_ends <= self.now:
                self._save()
        if gets_notice and run.at_notice is not None:
            self._leave(run.at_notice)

    def _leave(self, at_notice: AtNotice) -> None:
        num_before = self.num_saves
        while (left_s := self.lease.length_s - self.now) > 0:
            match at_notice(
                Remaining(
                    left_s=left_s,
                    push_left_s=max(0.0, self._push_ends - self.now),
                    num_unsaved_steps=self.trained - self.staged,
                    saved_since_notice=self.num_saves > num_before,
                )
            ):
                case "train":
                    if not self._train(1):
                        return
                case "save":
                    self._save()
                case "wait":
                    return

    def _train(self, num_steps: int) -> bool:
        """Train *num_steps* steps, or as many as fit into the lease. Return whether all of them did fit."""
        fit = min(num_steps, math.floor((self.lease.length_s - self.now) / self.run.step_s + 1e-9))
        if fit > 0:
            self.trained += fit
            self.now += fit * self.run.step_s
        return fit == num_steps

    def _save(self) -> None:
        """Stage the newest step, and append its push. Only :attr:`kept` decides which pushes ended in time."""
        self.now += self.run.save_s
        self.pushes.append((max(self.now, self._push_ends) + self.run.push_s, self.trained))
        self.staged = self.trained
        self.num_saves += 1
