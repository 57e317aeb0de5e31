"""The advice of the guard for a loop in plain PyTorch."""

from __future__ import annotations

from typing import Final

from ..guard import Kind

_MODEL: Final = "pass {} to spot.register_model(model, optimizers, schedulers), before spot.resume()"
_STATE: Final = "keep {} in an object with state_dict() and load_state_dict(), and spot.register() it"

REMEDIES: Final = {
    Kind.OPTIMIZER: _MODEL.format("optimizers"),
    Kind.SCHEDULER: _MODEL.format("schedulers"),
    Kind.MODULE: "pass modules to spot.register(name, module), before spot.resume()",
    Kind.TENSORS: _STATE.format("tensors"),
    Kind.GENERATOR: _STATE.format("generators"),
    Kind.SCALER: "pass the scaler to spot.register('scaler', scaler), before spot.resume()",
    Kind.LOADER: "pass the loader to spot.register_loader(), and iterate over spot.batches(loader)",
}
