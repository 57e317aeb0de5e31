"""The wrappers of Lightning Fabric, recognized by their names, because no host imports another."""

from __future__ import annotations

from typing import Any

from torch import nn


def model_in(model: nn.Module) -> nn.Module:
    """Return the model of DDP or FSDP, or the plain one, in the wrapper that ``fabric.setup()`` puts around it."""
    return next(model.children()) if type(model).__name__ == "_FabricModule" else model


def is_loader(loader: Any) -> bool:
    """Return True if *loader* comes from ``fabric.setup_dataloaders()``, which numbers the epochs by itself."""
    return type(loader).__name__ == "_FabricDataLoader"
