"""The advice of the guard for a training with a ``Trainer``."""

from __future__ import annotations

from typing import Final

from ..guard import Kind

_OBJECT: Final = "keep {} in the model, or give them to callback.register(name, object) before train()"

REMEDIES: Final = {
    Kind.OPTIMIZER: _OBJECT.format("optimizers"),
    Kind.SCHEDULER: _OBJECT.format("schedulers"),
    Kind.MODULE: _OBJECT.format("modules"),
    Kind.TENSORS: "keep tensors in an object with state_dict() and load_state_dict(), and callback.register() it",
    Kind.GENERATOR: "keep generators in an object with state_dict() and load_state_dict(), and callback.register() it",
    Kind.SCALER: "let the Trainer scale gradients (fp16=True), or callback.register('scaler', scaler)",
    Kind.LOADER: "let the Trainer make the loader, or return it from get_train_dataloader()",
}
