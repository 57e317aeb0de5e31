"""The steps of a learning rate scheduler per call, on another number of processes than the run began with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any


class Cadence(Enum):
    """The occasions on which a loop calls the ``step()`` of a scheduler."""

    STEP = "step"
    """After each optimizer step."""
    BATCH = "batch"
    """After each batch, also while gradients are accumulated. Only a scheduler that Accelerate does not tie."""
    EPOCH = "epoch"
    """More rarely, for example after each epoch."""

    @classmethod
    def of(cls, num_steps: int, per_call: int, num_optimizer_steps: int, accumulation: int) -> Cadence:
        """
        Return the cadence of a scheduler that has made *num_steps* steps in *num_optimizer_steps* of the optimizer.

        Args:
            num_steps: Steps of the scheduler itself.
            per_call: Its steps for each call that Accelerate passed on.
            num_optimizer_steps: Steps of the optimizer meanwhile.
            accumulation: Batches per step of the optimizer, on each process.
        """
        calls = Fraction(num_steps, per_call)
        if calls * 2 <= num_optimizer_steps:
            return cls.EPOCH
        if accumulation > 1 and calls * 2 > num_optimizer_steps * (1 + accumulation):
            return cls.BATCH
        return cls.STEP


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The samples that one optimizer step is made of, in batches of one process."""

    num_processes: int
    accumulation: int
    is_split: bool = False
    """True if all processes together take one batch of the loader (``split_batches``)."""

    @property
    def batches_at_once(self) -> int:
        """Batches of the loader that all processes take at a time."""
        return 1 if self.is_split else self.num_processes

    @property
    def batches_per_step(self) -> int:
        """Batches of the loader that one step of the optimizer is made of."""
        return self.batches_at_once * self.accumulation

    def state_dict(self) -> list[Any]:
        """Return the fields as plain values."""
        return [self.num_processes, self.accumulation, self.is_split]

    @classmethod
    def of_state(cls, state: list[Any]) -> Scale:
        """Return the scale that :meth:`state_dict` described."""
        return cls(num_processes=state[0], accumulation=state[1], is_split=state[2])


def steps_per_call(cadence: Cadence, first: Scale, now: Scale, *, is_tied: bool) -> Fraction:
    """
    Return the steps that a scheduler has to make per call, so that its schedule continues per sample.

    Args:
        cadence: The occasions of the calls.
        first: The scale with which the run began, for which the schedule was made.
        now: The scale of this process.
        is_tied: True if Accelerate ties the scheduler to the optimizer. It then makes a step for each process.
    """
    at_first = first.batches_at_once if is_tied else 1
    match cadence:
        case Cadence.STEP:
            samples = Fraction(now.batches_per_step, first.batches_per_step)
        case Cadence.BATCH:
            samples = Fraction(now.batches_at_once, first.batches_at_once)
        case Cadence.EPOCH:
            samples = Fraction(1)
    return at_first * samples


def natural_steps_per_call(now: Scale, *, is_tied: bool) -> int:
    """Return the steps that Accelerate makes per call by itself."""
    return now.batches_at_once if is_tied else 1
