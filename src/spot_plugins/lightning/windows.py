"""The windows of gradient accumulation and the steps of schedules, on another number of ranks or with other windows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from ..program import Program
from . import internals
from .position import PositionPart


class Windows:
    """
    The batches of each optimizer step, and the steps that schedules make for them.

    Lightning counts the windows from the head of an epoch, in batches of one rank. On another number of ranks, or with
    another ``accumulate_grad_batches``, a resumed epoch seldom continues at the end of such a window. The windows of
    that epoch are then counted from its first batch, so that each step is whole.

    A schedule by steps is made for the steps of the first process. If a step has other batches now, the schedule makes
    as many steps as those batches are worth.
    """

    def __init__(self, trainer: Trainer, position: PositionPart, program: Program, *, keep_batch: bool) -> None:
        self._trainer = trainer
        self._position = position
        self._program = program
        self._keep_batch = keep_batch
        self._configured = trainer.accumulate_grad_batches
        # Over all ranks, in the first process that had this setting.
        self._batches_per_step: int | None = None
        self._saved = 1  # accumulate_grad_batches at the save
        self._first = 0  # batch of the resumed epoch with which its windows begin
        self._done = Fraction(0)  # batches of the epoch, as one rank of the first process would count them
        self._epoch: int | None = None  # to which these two numbers belong
        self._paces = False

    def state_dict(self) -> dict[str, Any]:
        """Return the windows. Those of a training that keeps its ranks need nothing more than their size."""
        state: dict[str, Any] = {
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "configured": self._configured,
            "batches_per_step": self._batches_per_step or self._configured * self._position.num_replicas,
        }
        if self._paces:
            state["done"] = [self._done.numerator, self._done.denominator]
        return state

    def load_state_dict(self, state: dict[str, Any], num_batches: int) -> None:
        """Restore the windows that were saved after *num_batches* batches of an epoch."""
        self._saved = state["accumulate_grad_batches"]
        if state["configured"] != self._configured:
            return
        self._batches_per_step = state["batches_per_step"]
        self._done = Fraction(*state.get("done", [num_batches]))
        self._paces = "done" in state
        # Now, because functions of schedules may ask for trainer.estimated_stepping_batches right after the resume.
        self._keep_batches_per_step()

    def apply(self, *, is_mid_epoch: bool) -> None:
        """Set the windows that follow the restored batch, whose number is the one of this number of ranks by now."""
        trainer, now = self._trainer, self._trainer.accumulate_grad_batches
        if is_mid_epoch:
            self._epoch, self._first = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready
            if self._has_accumulation_schedule:
                # The schedule sets this number at the beginning of an epoch, and refuses to start with any but 1.
                trainer.accumulate_grad_batches = now = self._saved
        is_whole = self._first % now == 0
        if not is_whole:
            internals.count_windows_from(trainer, lambda: self._first if trainer.current_epoch == self._epoch else 0)
        if not is_whole or self._at_first != (self._position.num_replicas, now):
            self._paces = True
        self._name_steps_of_schedules(self._position.num_replicas * now)
        if self._paces:
            internals.replace_schedule_steps(trainer, self._steps_due)

    def close(self) -> None:
        """Give the trainer its own methods back."""
        internals.keep_windows(self._trainer)

    @property
    def _at_first(self) -> tuple[int, int]:
        """Ranks and accumulation for which the schedules were made."""
        before = self._batches_per_step or self._configured * self._position.num_replicas
        accumulation = self._trainer.accumulate_grad_batches if self._has_accumulation_schedule else self._configured
        return before // self._configured, accumulation

    def _steps_due(self) -> Iterator[int]:
        """
        Yield the steps that schedules make after a step of the optimizer.

        Each is a number of batches of the epoch, after which a rank of the first process would have made it. The last
        batch of an epoch completes a step, as in Lightning.
        """
        trainer = self._trainer
        if trainer.current_epoch != self._epoch:
            self._epoch, self._first, self._done = trainer.current_epoch, 0, Fraction(0)
        num_ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        num_batches = (num_ready - self._first - 1) % trainer.accumulate_grad_batches + 1
        num_ranks, accumulation = self._at_first
        before = self._done // accumulation
        self._done += Fraction(num_batches * self._position.num_replicas, num_ranks)
        yield from (number * accumulation for number in range(before + 1, self._done // accumulation + 1))
        if trainer.is_last_batch and self._done % accumulation:
            yield math.ceil(self._done)

    def _keep_batches_per_step(self) -> None:
        """Let the present ranks take as many batches per optimizer step as the ranks of the first process did."""
        num_replicas = self._position.num_replicas
        here = self._configured * num_replicas
        before = self._batches_per_step or here
        if not self._keep_batch or before == here:
            return
        if self._has_accumulation_schedule:
            obstacle = "a GradientAccumulationScheduler decides"
        elif not self._trainer.lightning_module.automatic_optimization:
            obstacle = "the module optimizes by hand"
        elif before % num_replicas:
            obstacle = f"{before} do not divide over {num_replicas} ranks"
        else:
            self._trainer.accumulate_grad_batches = before // num_replicas
            self._program.say(
                f"accumulate_grad_batches={before // num_replicas} on {num_replicas} ranks: an optimizer step is made "
                f"of {before} batches, as before"
            )
            return
        warnings.warn(f"an optimizer step is made of {here} batches now instead of {before}: {obstacle}", stacklevel=2)

    def _name_steps_of_schedules(self, now: int) -> None:
        """Say what a step of a schedule is, if an optimizer step is made of *now* batches and not of as many."""
        before = math.prod(self._at_first)
        if before != now and any(config.interval == "step" for config in self._trainer.lr_scheduler_configs):
            self._program.say(
                f"a step of a learning rate schedule is {before} batches, as in the first process, and an optimizer "
                f"step is {now}. A schedule made from trainer.estimated_stepping_batches of this process ends elsewhere"
            )

    @property
    def _has_accumulation_schedule(self) -> bool:
        callbacks = self._trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
