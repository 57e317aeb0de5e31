"""The Accelerate hook under a ``Trainer``, which reports its steps and ends the run itself."""

from __future__ import annotations

from typing import Any

import transformers
from accelerate import Accelerator
from transformers import TrainingArguments

from ..accelerate.hook import SpotHook
from ..loop.handouts import FOOT
from ..session.keeper import Keeper
from . import guarded

PART = "trainer"
"""Name of the part that has the state of the trainer."""
SAMPLES = "samples_per_step"
"""Name of the number of samples that a step is made of, in the state of that part."""
NAMED = ("label_smoothing_factor", "max_grad_norm")
"""Arguments of a trainer that change the training and belong neither to the optimizer nor to the schedule."""


class TrainerHook(SpotHook):
    """The hook of one ``train()``. It keeps the samples per step by the arguments of the trainer, not by Accelerate."""

    _remedies = guarded.REMEDIES

    def __init__(self, accelerator: Accelerator, **settings: Any) -> None:
        super().__init__(accelerator, **settings)
        self._keep_batch = False  # this setting is for a loop that accumulates with Accelerate
        self._told.never(FOOT)  # the trainer tests at the head of a resumed epoch what it tests at the foot of a step

    @property
    def keeper(self) -> Keeper:
        """The kept steps of the run."""
        return self._session.keeper

    def find_run(self, args: TrainingArguments) -> tuple[int, int] | None:
        """
        Return the step from which :meth:`resume` will continue, and the samples of a step. None on a first run.

        Args:
            args: The arguments of the trainer. The user is told if those of :data:`NAMED` have changed.
        """
        self._session.program.add_versions(transformers=transformers.__version__)
        self._session.program.add_settings(**{name: getattr(args, name) for name in NAMED})
        found = self._session.peek((PART, SAMPLES))
        return None if found is None else (found.step, int(found.value))  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """Show a line, once training starts."""
        self._session.program.say(text)

    def figures(self) -> dict[str, float]:
        """Return the figures of the run for trackers, if a step was stored since the last call."""
        return self._scalars.take()

    def count_from(self, step: int) -> None:
        """Count steps after *step*, that of a checkpoint of the trainer itself."""
        self._steps.number = step

    def finish(self) -> None:
        """Save the end of the training and wait until it is stored. Leaving the ``with`` block does not do it again."""
        self._steps.finish()
        self._saved = None
