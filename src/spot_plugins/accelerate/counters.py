"""The counters of Accelerate, and what follows from another number of processes for accumulation and schedules."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from ..loop.kept_batch import accumulation_that_keeps
from . import internals
from .cadence import Scale
from .schedules import Schedules


class CountersPart:
    """
    The counters of Accelerate: batches within gradient accumulation, passes over each loader, and saves by itself.

    The number of passes decides the order of a loader that shuffles, for example of a validation loader that is used
    without ``spot.batches``. Schedulers that are not prepared are saved here too.

    If the number of processes has changed and *keep_batch* is true, gradient accumulation is changed too, so that an
    optimizer step is made of as many batches over all processes as before. This needs a number that divides, and a
    loop with ``accelerator.accumulate()``.
    """

    def __init__(
        self, accelerator: Accelerator, schedules: Schedules, say: Callable[[str], None], *, keep_batch: bool
    ) -> None:
        self._accelerator = accelerator
        self._say = say
        self._schedules = schedules
        self._keep_batch = keep_batch
        self._configured = accelerator.gradient_accumulation_steps
        self._batches_per_step = self._scale.batches_per_step
        self._accumulates = False  # the loop has used accelerator.accumulate()

    def end_batch(self) -> None:
        """Take note that a batch has ended. Accelerate counts it if the loop uses ``accumulate()``."""
        if self._accelerator.step:
            self._accumulates = True

    def resume(self, num_optimizer_steps: int) -> None:
        """Let the schedules continue. Call it after everything was loaded."""
        self._schedules.resume(self._scale, num_optimizer_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters. What few loops need is there only if it is needed."""
        iterations = [getattr(loader, "iteration", 0) for loader in internals.loaders(self._accelerator)]
        state: dict[str, Any] = {
            "step": self._accelerator.step,
            "iterations": iterations,
            "configured": self._configured,
            "batches_per_step": self._batches_per_step,
        }
        if self._accumulates and not self._accelerator.step:
            state["accumulates"] = True
        if self._scale != Scale(
            num_processes=self._batches_per_step // self._configured, accumulation=self._configured
        ):
            state["scale"] = self._scale.state_dict()
        if self._accelerator.project_configuration.automatic_checkpoint_naming:
            state["save_iteration"] = self._accelerator.project_configuration.iteration
        if schedules := self._schedules.state_dict(self._scale):
            state["schedules"] = schedules
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters. A loader that is new to the run keeps its own."""
        self._accelerator.step = state["step"]
        self._accumulates = bool(state["step"] or state.get("accumulates"))
        for loader, iteration in zip(internals.loaders(self._accelerator), state["iterations"], strict=False):
            loader.iteration = iteration
        if "save_iteration" in state:
            self._restore_save_iteration(state["save_iteration"])
        saved = Scale(num_processes=state["batches_per_step"] // state["configured"], accumulation=state["configured"])
        if "scale" in state:
            saved = Scale.of_state(state["scale"])
        self._schedules.load_state_dict(state.get("schedules", {}), saved)
        if state["configured"] != self._configured:
            self._schedules.begin_anew()
        elif self._keep_batch:
            is_old = self._scale.is_split and "scale" not in state  # an earlier version counted each process here
            self._keep_batches_per_step(self._configured if is_old else state["batches_per_step"])
        if self._accelerator.gradient_accumulation_steps != saved.accumulation:
            self._accelerator.step = 0  # the batches counted so far belong to steps of another number of batches

    @property
    def _scale(self) -> Scale:
        return Scale(
            num_processes=self._accelerator.num_processes,
            accumulation=self._accelerator.gradient_accumulation_steps,
            is_split=bool(self._accelerator.split_batches),
        )

    def _keep_batches_per_step(self, before: int) -> None:
        advice = (
            None
            if self._accumulates
            else "the loop does not accumulate gradients by itself. Write the body of the loop into "
            "`with accelerator.accumulate(model):`"
        )
        kept = accumulation_that_keeps(
            before,
            self._batches_per_step,
            at_once=self._scale.batches_at_once,
            num_processes=self._accelerator.num_processes,
            advice=advice,
            say=self._say,
        )
        if self._accumulates:
            self._batches_per_step = before
        if kept is not None:
            self._accelerator.gradient_accumulation_steps = kept

    def _restore_save_iteration(self, number: int) -> None:
        """Let ``save_state()`` continue its numbers. Folders that came after the saved step stay as they are."""
        project = self._accelerator.project_configuration
        folder = os.path.join(self._accelerator.project_dir or "", "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        taken = [int(found[1]) for name in names if (found := re.fullmatch(r"checkpoint_(\d+)", name))]
        project.iteration = number if number not in taken else max(taken) + 1
