"""What a run makes of the machines that it gets: a replay of leases, to compare one way of saving with another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Lease:
    """A machine for some time."""

    length_s: float
    is_preempted: bool = True
    """Whether it was taken. Else it was given back, and everything trained on it is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """What is known at the end of a step once a notice has come."""

    left_s: float
    """Seconds until the machine is taken."""
    push_left_s: float
    """Seconds until all that was staged is stored; 0 if it is."""
    num_unsaved_steps: int
    """Steps trained since the newest one that was staged."""
    saved_since_notice: bool
    """Whether that one was staged after the notice."""


Act: TypeAlias = Literal["train", "save", "wait"]
AtNotice: TypeAlias = Callable[[Remaining], Act]
"""What to do next: one more step, a save, or nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """How a run trains and saves. Durations are in seconds."""

    step_s: float
    save_s: float
    """How long training stands still for one save."""
    push_s: float
    """From the end of that until the step is stored. Training goes on meanwhile; pushes follow one another."""
    restart_s: float
    """From the begin of a lease to the first step."""
    every_s: float
    """Training time between saves; one that is due while a push is under way waits for it. Infinity: none."""
    notice_s: float = 0.0
    """How long before a preemption it is known."""
    at_notice: AtNotice | None = None
    """Asked at every end of a step from then on. None: notices are not heard."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the time that was paid for."""

    goodput: float
    """Share of it that went into steps that were kept."""
    kept_steps: int
    lost_steps: int
    """Steps that were trained and have to be trained again."""
    num_saves: int


def replay(run: TrainingRun, leases: Iterable[Lease]) -> Outcome:
    """
    Train on one lease after the other, each from the newest stored step of the one before.

    Raises:
        ValueError: There is no lease, or nothing was paid for.
    """
    paid_s, kept, trained, num_saves = 0.0, 0, 0, 0
    for lease in leases:
        life = _Life(run, lease)
        life.live()
        paid_s += lease.length_s
        kept += life.kept
        trained += life.trained
        num_saves += life.num_saves
    if paid_s <= 0:
        raise ValueError("leases of no length have no goodput")
    return Outcome(kept * run.step_s / paid_s, kept, trained - kept, num_saves)


@dataclass
class _Life:
    """One process life. ``now`` is in seconds since the lease began."""

    run: TrainingRun
    lease: Lease
    now: float = 0.0
    trained: int = 0
    staged: int = 0
    num_saves: int = 0
    pushes: list[tuple[float, int]] = field(default_factory=list)
    """When each push ends, and its step."""

    @property
    def kept(self) -> int:
        """Steps that the next life need not train again."""
        if not self.lease.is_preempted:
            return self.trained
        return max((step for end, step in self.pushes if end <= self.lease.length_s), default=0)

    @property
    def _push_ends(self) -> float:
        return self.pushes[-1][0] if self.pushes else 0.0

    def live(self) -> None:
        """Train and save until the machine is gone."""
        run = self.run
        self.now = run.restart_s
        hears = self.lease.is_preempted and run.at_notice is not None and run.notice_s > 0
        noticed_at = self.lease.length_s - run.notice_s if hears else self.lease.length_s
        steps_per_save = math.inf if math.isinf(run.every_s) else max(1, math.ceil(run.every_s / run.step_s))
        while self.now < noticed_at:
            steps_to_notice = math.ceil((noticed_at - self.now) / run.step_s)
            num_steps = int(min(max(1, steps_per_save - (self.trained - self.staged)), steps_to_notice))
            if not self._train(num_steps):
                return
            is_due = self.trained - self.staged >= steps_per_save
            if is_due and self.now < noticed_at and self._push_ends <= self.now:
                self._save()
        if hears and run.at_notice is not None:
            self._heed(run.at_notice)

    def _heed(self, at_notice: AtNotice) -> None:
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
        """Train so many steps, or as many as fit into the lease. Return whether that was all of them."""
        fit = min(num_steps, math.floor((self.lease.length_s - self.now) / self.run.step_s + 1e-9))
        if fit > 0:
            self.trained += fit
            self.now += fit * self.run.step_s
        return fit == num_steps

    def _save(self) -> None:
        """Stage, and push behind what is under way. Whether that is in time shows at the end."""
        self.now += self.run.save_s
        self.pushes.append((max(self.now, self._push_ends) + self.run.push_s, self.trained))
        self.staged = self.trained
        self.num_saves += 1
