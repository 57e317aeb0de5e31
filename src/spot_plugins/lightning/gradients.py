"""Gradients that one optimizer of a training by hand still collects while another one has made a step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..state import clean_name
from .steps import Steps


class PendingGradients:
    """
    The gradients of the optimizers that have made no step in the present batch.

    With automatic optimization a step leaves none. In a training by hand an optimizer may step in every fourth batch
    only, and the gradients of the batches before are needed then.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, steps: Steps) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._steps = steps
        self._loaded: dict[str, Any] = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the gradients by the names of their parameters. Gradients that are spread over ranks are left out."""
        if self._module.automatic_optimization:
            return {}
        done = {
            id(parameter)
            for optimizer in self._steps.just_stepped
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return {
            clean_name(name): parameter.grad
            for name, parameter in self._module.named_parameters()
            if type(parameter.grad) is torch.Tensor and id(parameter) not in done
        }

    def load_state_dict(self, gradients: dict[str, Any]) -> None:
        """Keep *gradients* for :meth:`apply`."""
        self._loaded = gradients

    def apply(self) -> None:
        """Give the parameters their gradients back."""
        for name, parameter in self._module.named_parameters():
            if (gradient := self._loaded.pop(clean_name(name), None)) is not None:
                parameter.grad = gradient.to(parameter.device, copy=True)
