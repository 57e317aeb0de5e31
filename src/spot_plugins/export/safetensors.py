"""Files of safetensors, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from .. import __version__
from ..resume.weights import Weight, Weights, open_weights
from .outputs import check_new, new_file


def export_weights(
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
    Write the weights of a committed step to *out*, a safetensors file. It needs no GPU and no model.

    The names are those of the module's ``state_dict()``, without the words of DDP, FSDP and ``torch.compile``. Tensors
    that were spread over ranks are whole. Nothing of the checkpoint is run.

    Args:
        url: URL of the run.
        out: Path of the file. It must not exist.
        step: Number of a committed step. None: the newest.
        kept: Whether only steps count that are kept. Then *step* may be None if one step is kept.
        part: Name of the model, such as ``model-1``, if the program trains several.
        module: Name of a module in the model, such as ``model``, to write it alone, with the names that it has itself.
        storage_options: Options of the fsspec file system.

    Returns:
        The weights that were written. ``left_out`` has the names of extra state that is no tensor.

    Raises:
        ConfigError: There is no such step, model or module, or *out* cannot be written.
        CorruptCheckpointError, IncompatibleCheckpointError: The step cannot be read.
        SpotError: A training has pruned the step meanwhile.
        StoreError: The store does not answer.
    """
    check_new(out)
    weights = open_weights(url, step, kept=kept, part=part, module=module, storage_options=storage_options)
    with new_file(out) as file:
        write_tensors(file, weights, weights.tensors)
    return weights


def write_tensors(file: BinaryIO, weights: Weights, tensors: Sequence[Weight]) -> None:
    """Write *tensors* of *weights* to *file*, with the names that they have here. A few are in memory at a time."""
    file.write(_header(weights, tensors))
    for _, image in weights.read(tensors):
        file.write(image)
        del image  # before the next one is read


def _header(weights: Weights, tensors: Sequence[Weight]) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",  # transformers reads no file without it
            "step": str(weights.step_id.step),
            "attempt": str(weights.step_id.attempt),
            "software": f"spot_plugins {__version__}",
        }
    }
    position = 0
    for each in tensors:
        offsets = [position, position + each.num_bytes]
        entries[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": offsets}
        position += each.num_bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
