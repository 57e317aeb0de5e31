"""The pauses of one ``fit``, in which a notice is obeyed at once although no step is made for long."""

from __future__ import annotations

import time

from lightning.pytorch import Trainer

from ..session import Pause, SpotSession
from . import internals
from .steps import Steps


class Pauses:
    """
    The pauses of one ``fit``, in which no step is made for long: validation, and what comes around it.

    A pause begins right after a step. It ends when the validation ends; after the last batch of an epoch it ends at the
    next batch; and if the validation comes before the batches of the next step are complete, it ends with that step.
    """

    def __init__(self, trainer: Trainer, session: SpotSession, steps: Steps) -> None:
        self._trainer = trainer
        self._session = session
        self._steps = steps
        self._pause: Pause | None = None
        self._until_step = False
        self._step_ended = time.monotonic()

    def begin_sanity_check(self) -> None:
        """Begin the pause of the validation before the training."""
        self._begin(until_step=False)

    def begin_after_step(self) -> None:
        """Begin a pause if validation comes before the next step."""
        now = time.monotonic()
        step_s, self._step_ended = now - self._step_ended, now
        window = max(self._trainer.accumulate_grad_batches, self._steps.longest)
        if internals.validation_is_due(self._trainer):
            self._begin(until_step=False)
        elif internals.validation_is_near(self._trainer, window, step_s):
            self._begin(until_step=True)

    def check(self) -> None:
        """Leave if there is a notice and the training stands in a pause."""
        if self._pause is not None:
            self._pause.check()

    def begin_batch(self) -> None:
        """End the pause, unless it lasts until the next step."""
        if self._until_step:
            self.check()
        else:
            self.end()

    def end_validation(self) -> None:
        """End the pause, unless more comes before the next batch."""
        is_between_epochs = self._trainer.is_last_batch and not self._trainer.sanity_checking
        if self._pause is not None and self._trainer.should_stop and not self._trainer.is_last_batch:
            self._pause.save()  # see Fit.end_batch()
        if self._until_step or is_between_epochs:
            self.check()
        else:
            self.end()

    def end(self) -> None:
        """End the pause, if there is one. Leave if there is a notice."""
        pause, self._pause, self._until_step = self._pause, None, False
        if pause is not None:
            pause.__exit__(None, None, None)

    def _begin(self, *, until_step: bool) -> None:
        self._until_step = until_step
        self._pause = self._session.pause(self._steps.number)
        self._pause.__enter__()
