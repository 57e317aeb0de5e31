"""Situations of a training as data: the program, the lives that it has, and how each of them ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Program:
    """The settings of a training program. An adapter writes it as a user of its host would."""

    loader: Literal["elastic", "counted", "stateful"] = "elastic"
    num_loaders: int = 1
    """Loaders that are read side by side. The shortest one ends the epoch."""
    num_samples: int = 24
    batch_size: int = 4
    num_workers: int = 0
    is_noisy: bool = False
    """True if the data set draws random numbers for each sample."""
    data_seed: int = 7
    num_epochs: int = 2
    accumulate: int = 1
    """Batches per optimizer step. The last batch of an epoch ends a step in any case."""
    optimizers: tuple[str, ...] = ("adam",)
    lr: float = 0.01
    schedule: Literal["none", "step", "epoch", "plateau"] = "none"
    validate: int | Literal["never", "epoch"] = "never"
    """Validation after each epoch, or before the next batch once this many more batches were trained on."""
    width: int = 16
    every_steps: int = 4
    num_ranks: int = 1

    @property
    def num_batches(self) -> int:
        """Batches of one epoch on each rank."""
        return math.ceil(self.num_samples / self.batch_size / self.num_ranks)

    def ends_step(self, number: int) -> bool:
        """Return True if an optimizer step follows batch *number* of an epoch, counted from 1."""
        return number % self.accumulate == 0 or number == self.num_batches

    def validates_before(self, number: int) -> bool:
        """Return True if a validation precedes batch *number* of an epoch, counted from 1."""
        return isinstance(self.validate, int) and number > 1 and (number - 1) % self.validate == 0


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One end of a life before the end of its training, at the *number*-th time that the life comes to *place*."""

    kind: Literal["notice", "two notices", "crash", "SIGKILL"] = "notice"
    place: Literal["batch", "validation", "epoch end"] = "batch"
    number: int = 1
    rank: int = 0
    """Rank that it hits."""

    @property
    def is_notice(self) -> bool:
        """True if the life has time to save."""
        return self.kind in ("notice", "two notices")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A program, the interruptions of its lives, and the result that is expected of them."""

    name: str
    program: Program
    interruptions: tuple[Interruption, ...] = ()
    """One for each life but the last, which ends as the training does."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the program that differ in the last life."""
    expected: Literal["exact", "samples", "told", "refused"] = "exact"
    """
    Result of the last life.

    - ``exact``: all that it trains, and its final state, are those of the last life's program left alone.
    - ``samples``: each epoch sees the samples of the program left alone, in their order. Batches may differ.
    - ``told``: a visible message, or the message of an error of the library, matches *says*.
    - ``refused``: it ends with an error that matches *says*, before it has trained.
    """
    says: str = ""
    """Pattern of the message."""
    unknown_to: tuple[str, ...] = ()
    """Hosts that cannot know the settings that are changed, or promise something else, which a test of theirs has."""
    leaves_within_accumulation: bool = False
    """True if the batches of an accumulation that was under way may be trained again after a notice."""

    @property
    def last_program(self) -> Program:
        """The program of the last life."""
        return replace(self.program, **self.changed)


@dataclass(kw_only=True)
class Outcome:
    """All that one life of a program did and said."""

    end: Literal["finished", "preempted", "killed", "refused"]
    message: str = ""
    names_remedy: bool = False
    """True if it ended with an error that the library raises on purpose."""
    exit_code: int = 0
    rows: list[list[Any]] = field(default_factory=list)
    """One row for each batch: epoch, optimizer steps before it, numbers of its samples, learning rates, loss."""
    validations: list[list[Any]] = field(default_factory=list)
    """One row for each batch of a validation: epoch, optimizer steps, number of the batch, loss."""
    final: Any = None
    """State of model, optimizers, schedulers and random streams, if the training came to its end."""
    resumed_from: int | None = None
    last_committed_step: int | None = None
    events: list[Any] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Warnings, and lines of the log that the user sees."""
