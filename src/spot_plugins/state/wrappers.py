"""The plain modules, optimizers and names inside the wrappers of hosts, DDP, FSDP and ``torch.compile``."""

from __future__ import annotations

import torch
from torch import nn


def plain_module(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of data parallelism and of ``torch.compile``."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled  # the wrapper of torch.compile, whose class is costly to import
        else:
            return module


def copies_tensors(loading: object) -> bool:
    """Return True if *loading* is a module or an optimizer with torch's own ``load_state_dict()``, which copies."""
    return any(
        isinstance(loading, kind) and type(loading).load_state_dict is kind.load_state_dict
        for kind in (nn.Module, torch.optim.Optimizer)
    )


def plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """
    Return the optimizer inside the wrappers of a host.

    A wrapper with state of its own, such as a lookahead optimizer, is no wrapper of a host. It is returned itself.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer) and inner.state is optimizer.state:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def clean_name(name: str) -> str:
    """Return *name* without the words of wrapped submodules: FSDP1, activation checkpointing, ``torch.compile``."""
    for word in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"):
        name = name.replace(f"{word}.", "")
    return name
