"""The steps of one ``fit``, as the session numbers them."""

from __future__ import annotations

from typing import Final

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from ..guard import OptimizerSteps

NUM_QUIET_BATCHES: Final = 16
"""Batches of a training by hand without the step of any optimizer, after which every batch counts as a step."""


class Steps:
    """
    Counts the steps of a ``fit``.

    With automatic optimization, and with steps through ``self.optimizers()``, the number of a step is
    ``trainer.global_step``. Lightning does not count a step of the plain optimizer in a training by hand. There a batch
    with such steps counts as one step. If no optimizer of torch makes any step, every batch does.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._optimizers = OptimizerSteps(self._note)
        self._counted = 0  # steps of optimizers until now
        self._global_step = 0
        self._quiet = 0  # batches since the last step
        self.number = 0
        """The number of the last step."""
        self.longest = 1
        """The largest number of batches that one step took."""
        self.just_stepped: list[Optimizer] = []
        """The optimizers that have made a step in the batch that ended last."""
        self._stepped: list[Optimizer] = []

    def begin(self, step: int | None) -> None:
        """Begin after *step*, the one that was resumed from, or at the beginning of a run."""
        self._global_step = self._trainer.global_step
        self.number = self._global_step if step is None else step

    def end_batch(self) -> bool:
        """Return True if the batch that ends now completed a step, and count it."""
        steps = self._trainer.global_step - self._global_step
        counted = self._optimizers.total - self._counted
        self._global_step += steps
        self._counted += counted
        self._quiet += 1
        self.just_stepped, self._stepped = self._stepped, []
        if steps == 0 and not self._trainer.lightning_module.automatic_optimization:
            is_never = self._counted == 0 and self._quiet > NUM_QUIET_BATCHES
            steps = 1 if counted or is_never else 0
        if steps == 0:
            return False
        self.number += steps
        if self._counted or self._trainer.lightning_module.automatic_optimization:
            self.longest = max(self.longest, self._quiet)
            self._quiet = 0
        return True

    def close(self) -> None:
        """Count no more."""
        self._optimizers.close()
        self.just_stepped, self._stepped = [], []

    def _note(self, optimizer: Optimizer) -> None:
        if not any(known is optimizer for known in self._stepped):
            self._stepped.append(optimizer)


def own_optimizers(trainer: Trainer, pl_module: LightningModule) -> list[Optimizer]:
    """Return the optimizers in attributes of *pl_module* that ``configure_optimizers`` does not return."""
    found: list[Optimizer] = []
    for value in vars(pl_module).values():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for each in values:
            is_known = any(each is known for known in (*trainer.optimizers, *found))
            if isinstance(each, Optimizer) and not is_known:
                found.append(each)
    return found
