"""Checkpoints of models and optimizers, saved in this process by any number of ranks, whole or spread over them."""

from __future__ import annotations

import torch
from steps import Holder, save

from spot_plugins.format.boxes import Box, ShardBoxes
from spot_plugins.state import ModelPart, OptimizerPart, RngPart
from spot_plugins.state.registry import Registry
from spot_plugins.state.shard import Shard
from spot_plugins.store import LocalStore

WAYS = [(1, False), (2, False), (2, True), (3, True)]
"""Numbers of ranks, and whether each has some rows of the state, as under FSDP, or all of it, as under DDP."""

_NONE = {"total": {"completed": 0}}
LOOPS = {
    "fit_loop": {
        "epoch_progress": {"current": {"processed": 0}},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": _NONE}},
        "epoch_loop.manual_optimization.optim_step_progress": _NONE,
    }
}
"""Loops of a Lightning trainer that has done nothing."""


def of_each_host():
    """Return parts, by name, of which each format of an export finds those that it needs beside a model."""
    return {"accelerator": {"step": 1}, "loops": LOOPS, "rng": RngPart().state_dict()}


def save_model(url, models, optimizers=(), *, step=1, world_size=1, is_spread=False, others=None):
    """Save step *step* of the run at *url*. *others* are parts with plain state, by name, or a function of the rank."""
    for rank in range(world_size):
        parts = Registry()
        for name, model in models.items():
            state = ModelPart(model).state_dict()
            parts.add(name, Holder(spread(state, rank, world_size) if is_spread else state), ModelPart.replicated)
        for number, optimizer in enumerate(optimizers):
            state = OptimizerPart(optimizer, next(iter(models.values()))).state_dict()
            part = Holder(without_empty(spread(state, rank, world_size)) if is_spread else state)
            parts.add(f"optimizer-{number}", part, OptimizerPart.replicated)
        for name, state in (others(rank) if callable(others) else others or {}).items():
            parts.add(name, Holder(state))
        save(step, LocalStore(url), rank=rank, world_size=world_size, keep_last=9, parts=parts)


def spread(state, rank, world_size, known=None):
    """Return *state* with this rank's rows of each tensor, the last rank first. Rank 0 may have none."""
    known = {} if known is None else known
    if isinstance(state, dict):
        return {key: spread(value, rank, world_size, known) for key, value in state.items()}
    if not isinstance(state, torch.Tensor) or not state.ndim:
        return state
    if state.data_ptr() not in known:  # tied weights stay one
        chunks = torch.chunk(state, world_size)
        place = world_size - 1 - rank
        rows = chunks[place] if place < len(chunks) else state[:0]
        first = min(place * len(chunks[0]), len(state))
        box = Box((first, *(0 for _ in state.shape[1:])), tuple(rows.shape))
        known[state.data_ptr()] = Shard(rows, ShardBoxes(tuple(state.shape), (box,), (rank,)))
    return known[state.data_ptr()]


def without_empty(state):
    """Return *state* without tensors of which this rank has no row, as FSDP1 has the state of an optimizer."""
    if not isinstance(state, dict):
        return state
    kept = {key: value for key, value in state.items() if not (isinstance(value, Shard) and not value.local.numel())}
    return {key: without_empty(value) for key, value in kept.items()}


def damage(folder):
    """Change the last byte of a blob of the run in *folder*."""
    blob = next(folder.glob("steps/*/r*.safetensors"))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
