"""Files for ``torch.load``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..resume.weights import Weights, open_weights
from .outputs import check_new, new_file
from .stored_state import StoredState
from .torch_stream import write_state


def export_torch_weights(
    url: str,
    out: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    module: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Weights:
    """
    Write the weights of a committed step to *out*, a file for ``torch.load``. A few are in memory at a time.

    Arguments, result and errors are those of :func:`~.safetensors.export_weights`.
    """
    check_new(out)
    weights = open_weights(url, step, kept=kept, part=part, module=module, storage_options=storage_options)
    stored = StoredState(weights)
    tensors = {each.name: stored.tensor(each) for each in weights.tensors}
    with new_file(out) as file:
        write_state(file, tensors, stored)
    return weights
