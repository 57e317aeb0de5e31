"""The advice of the guard for a loop with Accelerate."""

from __future__ import annotations

from typing import Final

from ..guard import Kind

_OBJECT: Final = "pass {} to accelerator.prepare() or to spot.register(name, object), before spot.resume()"
_STATE: Final = "keep {} in an object with state_dict() and load_state_dict(), and spot.register() it"

REMEDIES: Final = {
    Kind.OPTIMIZER: _OBJECT.format("optimizers"),
    Kind.SCHEDULER: _OBJECT.format("schedulers"),
    Kind.MODULE: _OBJECT.format("modules"),
    Kind.TENSORS: _STATE.format("tensors"),
    Kind.GENERATOR: _STATE.format("generators"),
    Kind.SCALER: "let the Accelerator scale gradients (mixed_precision='fp16'), or spot.register('scaler', scaler)",
    Kind.LOADER: "pass the loader to accelerator.prepare(), and iterate over spot.batches(loader)",
}
