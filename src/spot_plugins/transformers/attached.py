"""The tie between a trainer and the run that the callback has put under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback

from ..errors import ConfigError
from ..state.part import Part
from .fit import Fit
from .hook import TrainerHook
from .refused import refuse


class Attached:
    """
    The run under one trainer, from one ``train()`` to the next.

    Args:
        callback: The callback that has the run.
        settings: The settings of the run.
    """

    def __init__(self, callback: TrainerCallback, settings: dict[str, Any]) -> None:
        self.trainer: Trainer | None = None
        self.fit: Fit | None = None
        """The training that runs, or None."""
        self.registered: list[tuple[str, Part]] = []
        self._callback = callback
        self._settings = settings
        # Of the last training, after it has ended.
        self._last_committed_step: int | None = None
        self._resumed_from: int | None = None

    @property
    def last_committed_step(self) -> int | None:
        """Newest step that this rank has committed in this process, or None."""
        return self._last_committed_step if self.fit is None else self.fit.hook.last_committed_step

    @property
    def resumed_from(self) -> int | None:
        """Step after which this process continued, or None."""
        return self._resumed_from if self.fit is None else self.fit.hook.resumed_from

    @property
    def running(self) -> Fit:
        """
        The training that runs.

        Raises:
            ConfigError: The callback has no trainer.
        """
        if self.fit is None:
            raise ConfigError(
                "this SpotTrainerCallback has no trainer, so nothing would be saved. Give it to the trainer in "
                "callbacks=[...], or call callback.attach(trainer) before train()"
            )
        return self.fit

    @contextmanager
    def opened(self, trial: Any) -> Iterator[Fit]:
        """Open the run for one training. *trial* is that of a hyperparameter search, or None."""
        trainer = self.trainer
        assert trainer is not None
        refuse(trainer, trial)
        callbacks = trainer.callback_handler.callbacks
        # Last, so that what the others decide in an event is part of the state.
        callbacks[:] = [*(each for each in callbacks if each is not self._callback), self._callback]
        hook = TrainerHook(trainer.accelerator, **self._settings)
        with hook:
            self.fit = Fit(trainer, hook, self.registered)
            try:
                yield self.fit
            finally:
                self._last_committed_step, self._resumed_from = hook.last_committed_step, hook.resumed_from
                self.fit = None
