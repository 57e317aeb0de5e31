"""The state of a gradient scaler, without a wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.amp import GradScaler

from .part import Part, PlainPart, ShardedPart


class ScalerPart(PlainPart):
    """
    A gradient scaler of torch. Its scale and its counter are saved as the tensors that they are.

    The scaler's own ``state_dict()`` reads both numbers, and each read waits until the device has done all its work.
    """

    def __init__(self, scaler: GradScaler) -> None:
        super().__init__(scaler)
        self._scaler = scaler

    def state_dict(self) -> dict[str, Any]:
        """Return the keys of the scaler's own ``state_dict()``."""
        scaler = self._scaler
        is_own = type(scaler).state_dict is not GradScaler.state_dict
        if is_own or getattr(scaler, "_scale", None) is None:  # before the first step, or switched off
            return scaler.state_dict()
        return {
            "scale": scaler._scale,
            "growth_factor": scaler.get_growth_factor(),
            "backoff_factor": scaler.get_backoff_factor(),
            "growth_interval": scaler.get_growth_interval(),
            "_growth_tracker": scaler._growth_tracker,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the scaler its state back. Older checkpoints have numbers in the place of tensors."""
        self._scaler.load_state_dict(numbers_of(state))


def numbers_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return *state*, which is in host memory, with numbers in the place of tensors."""
    return {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


def as_sharded(part: Part) -> ShardedPart:
    """Return *part* as the registry needs it."""
    if isinstance(part, ShardedPart):
        return part
    return ScalerPart(part) if isinstance(part, GradScaler) else PlainPart(part)
