"""The weights of a committed step as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..state.dtypes import TORCH_DTYPES
from .weights import Weight, Weights, open_weights


def load_weights(
    url: str,
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Return the weights of a committed step as whole tensors on the CPU, to be given to ``module.load_state_dict()``.

    One process calls it, also for weights that many ranks have saved. The names are those of the module's
    ``state_dict()``, without the words of DDP, FSDP and ``torch.compile``.

    Args:
        url: URL of the run.
        step: Number of a committed step. None: the newest.
        kept: Whether only steps count that are kept. Then *step* may be None if one step is kept.
        part: Name of the model, such as ``model-1``, if the program trains several.
        storage_options: Options of the fsspec file system.

    Raises:
        ConfigError: There is no such step or model.
        CorruptCheckpointError, IncompatibleCheckpointError: The step cannot be read.
        SpotError: A training has pruned the step meanwhile.
        StoreError: The store does not answer.
    """
    return tensors_of(open_weights(url, step, kept=kept, part=part, storage_options=storage_options))


def tensors_of(weights: Weights) -> dict[str, torch.Tensor]:
    """Read *weights* into tensors."""
    return {weight.name: tensor_of(weight, image) for weight, image in weights.read()}


def tensor_of(weight: Weight, image: memoryview) -> torch.Tensor:
    """Return the bytes *image* of *weight* as a tensor, without a copy."""
    dtype = TORCH_DTYPES[weight.dtype]
    if not weight.num_bytes:
        return torch.empty(weight.shape, dtype=dtype)
    return torch.frombuffer(image, dtype=dtype).view(weight.shape)
