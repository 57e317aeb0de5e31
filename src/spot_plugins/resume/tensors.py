"""The weights of a committed step as tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..state.dtypes import TORCH_DTYPES
from .weights import Weights, check_new, new_file, open_weights


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
        StoreError: The store does not answer.
    """
    return tensors_of(open_weights(url, step, kept=kept, part=part, storage_options=storage_options))


def export_torch_weights(
    url: str,
    out: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Weights:
    """
    Write the weights of a committed step to *out*, a file for ``torch.load``. All of them are in memory at a time.

    Arguments, result and errors are those of :func:`~.weights.export_weights`.
    """
    check_new(out)
    weights = open_weights(url, step, kept=kept, part=part, storage_options=storage_options)
    tensors = tensors_of(weights)
    with new_file(out) as file:
        torch.save(tensors, file)
    return weights


def tensors_of(weights: Weights) -> dict[str, torch.Tensor]:
    """Read *weights* into tensors."""
    found = {}
    for weight, image in weights.read():
        dtype = TORCH_DTYPES[weight.dtype]
        found[weight.name] = (
            torch.frombuffer(image, dtype=dtype).view(weight.shape)
            if weight.num_bytes
            else torch.empty(weight.shape, dtype=dtype)
        )
    return found
