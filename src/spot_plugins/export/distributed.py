"""Directories of ``torch.distributed.checkpoint``, which ``dcp.load`` reads on any number of ranks."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from ..errors import ConfigError
from ..resume.weights import KINDS, Weights, open_weights
from .outputs import Exported, check_new, exported, new_folder
from .stored_state import StoredState


def export_distributed(
    url: str,
    out: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    part: str | None = None,
    module: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """
    Write a model of a committed step and the state of its optimizers to *out*, a directory for ``dcp.load``.

    The state has the keys ``model`` and ``optim``, in the form of ``get_state_dict()`` of torch. The optimizers are
    left out if the run has several models, or if *module* is given. A few tensors are in memory at a time.

    Arguments and errors are those of :func:`~.safetensors.export_weights`.
    """
    check_new(out)
    weights = open_weights(url, step, kept=kept, part=part, module=module, storage_options=storage_options)
    stored = StoredState(weights)
    notes = []
    with stored.errors():
        state: dict[str, Any] = {"model": _model(weights, stored, module)}
        if weights.is_whole:
            state["optim"] = _optimizers(stored)
    if not weights.is_whole:
        notes.append("the optimizers train more than these weights, so their state is left out")
    with new_folder(out) as folder:
        # Each value has its file, because torch keeps all tensors of a file in memory until it is closed.
        writer = FileSystemWriter(folder, single_file_per_rank=False, sync_files=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                _save_alone(state, writer, _Planner(stored))
            except CheckpointException as error:  # which derives from BaseException, and holds the one that was raised
                raise cast("Exception", error.failures[0][0]) from error
    return exported(weights, stored.weights_of(state), notes)


def _save_alone(state: dict[str, Any], writer: FileSystemWriter, planner: _Planner) -> None:
    """Let this process write *state*, whether it is a rank of a job or not. torch 2.6 has no public function for it."""
    if "no_dist" in inspect.signature(state_dict_saver.save).parameters:
        state_dict_saver.save(state, storage_writer=writer, planner=planner, no_dist=True)
    else:
        state_dict_saver._save_state_dict(state, writer, no_dist=True, planner=planner)


class _Planner(DefaultSavePlanner):
    """Reads the tensors while they are written."""

    def __init__(self, stored: StoredState) -> None:
        super().__init__()
        self._stored = stored

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Begin to read the tensors, in the order of the plan, in which they are written."""
        plan = super().finish_plan(new_plan)
        values = [super(_Planner, self).lookup_object(item.index) for item in plan.items]
        self._read = self._stored.read([each for each in values if isinstance(each, torch.Tensor)])
        return plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return the value for *index*, with its data if it is a tensor."""
        value = super().lookup_object(index)
        if not isinstance(value, torch.Tensor):
            return value
        tensor, read = next(self._read)
        if tensor is not value:  # another version of torch: the file would have the bytes of another tensor
            raise ConfigError("this torch writes tensors in another order than it has planned: take another format")
        return read


def _model(weights: Weights, stored: StoredState, module: str | None) -> dict[str, Any]:
    state = stored.part(weights.part)
    start = "" if module is None else f"{module}."
    values = {name: value for kind in KINDS for name, value in state[kind].items()}
    return {name[len(start) :]: value for name, value in values.items() if name.startswith(start)}


def _optimizers(stored: StoredState) -> dict[str, Any]:
    """Return the state of all optimizers together, as ``get_state_dict()`` does."""
    together: dict[str, Any] = {"state": {}, "param_groups": []}
    for state in map(stored.part, stored.optimizers()):
        together["state"] |= state["state"]
        together["param_groups"] += state["param_groups"]
    return together
