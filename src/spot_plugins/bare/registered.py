"""All that a loop in plain PyTorch saves beside its position in the data, and the batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..guard import warn
from ..loop.kept_batch import accumulation_that_keeps
from ..loop.saved import NamedPart, Saved, check_owners
from ..program import Program
from .plain import PlainPyTorch


class Accumulation:
    """
    The batches that an optimizer step is made of, as a part to save.

    If the number of processes has changed and *keeps_batch* is true, :attr:`steps` changes too, so that a step is made
    of as many batches over all processes as before. This needs a number that divides, and a loop that accumulates.

    Args:
        framework: The framework under the loop.
        configured: Batches of one process per step, on the number of processes with which the run began.
        keeps_batch: False lets the batches of a step scale with the processes.
        say: Shows a line to the user.
    """

    def __init__(
        self, framework: PlainPyTorch, configured: int, *, keeps_batch: bool, say: Callable[[str], None]
    ) -> None:
        self.steps = configured
        """Batches of this process per step."""
        self.is_used = configured > 1
        """True if the loop accumulates gradients."""
        self._framework = framework
        self._configured = configured
        self._keeps_batch = keeps_batch
        self._say = say
        self._batches_per_step: int | None = None  # of the saved step, if they are kept

    def state_dict(self) -> dict[str, Any]:
        """Return the batches of a step, over all processes, and if the loop accumulates gradients."""
        here = self._configured * self._framework.batches_at_once
        return {
            "configured": self._configured,
            "batches_per_step": self._batches_per_step or here,
            "accumulates": self.is_used,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the batches of a step, unless the program has set another number, and say what becomes of schedules."""
        self.is_used |= state["accumulates"]
        if self._keeps_batch and state["configured"] == self._configured:
            self._keep(state)
        before, now = state["batches_per_step"], self.steps * self._framework.batches_at_once
        if before != now and self._framework.num_schedulers:
            warn(
                f"a step of the optimizer is {now} batches now instead of {before}, and a scheduler makes a step per "
                f"call and not per sample. A schedule by steps of the optimizer ends at another sample than before"
            )

    def _keep(self, state: dict[str, Any]) -> None:
        advice = (
            "the loop does not accumulate gradients by itself. Let optimizers step `if spot.sync_gradients:`, with "
            "gradients of loss / spot.gradient_accumulation_steps"
        )
        at_once = self._framework.batches_at_once
        kept = accumulation_that_keeps(
            state["batches_per_step"],
            self._configured * at_once,
            at_once=at_once,
            num_processes=at_once,
            advice=None if self.is_used else advice,
            say=self._say,
        )
        if self.is_used:
            self._batches_per_step = state["batches_per_step"]
        self.steps = kept or self.steps


class Registered(Saved):
    """
    Everything that the program has registered, which the session saves already, and the accumulation.

    Args:
        framework: The framework under the loop.
        accumulation: The batches of a step.
        others: The objects that the program has registered beside models, optimizers, schedulers and loaders.
    """

    def __init__(self, framework: PlainPyTorch, accumulation: Accumulation, others: list[Any]) -> None:
        self._framework = framework
        self._accumulation = accumulation
        self._others = others

    def parts(self) -> list[NamedPart]:
        """
        Return the accumulation, which is all that the session does not save already.

        Raises:
            ConfigError: Nothing is registered, or something that is trained would not be saved.
        """
        framework = self._framework
        if not framework.models and not self._others:
            raise ConfigError(
                "no model is registered, so there is nothing to save: call spot.register_model(model, optimizers, "
                "schedulers) before spot.resume()"
            )
        remedy = (
            "no registered model, so they would not be saved. Pass their module to spot.register_model(), or to "
            "spot.register(name, module). With FSDP2, make optimizers after fully_shard()"
        )
        check_owners(framework.optimizers, [*framework.models, *self._others], remedy)
        return [NamedPart("accumulation", self._accumulation)]

    def describe(self, program: Program) -> None:
        """Describe the settings of the loop to *program*."""
        program.add_settings(
            registered_loaders=len(self._framework.loaders),  # a loader is known by its number
            gradient_accumulation_steps=self._accumulation.steps,
        )
