"""The view of Lightning on a training, for the guard that looks for things that are not saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from lightning.pytorch import LightningModule, Trainer

from ..guard import Host, Kind
from . import facts, loader_internals

REMEDIES: Final = {
    Kind.OPTIMIZER: "return optimizers from configure_optimizers()",
    Kind.SCHEDULER: "return schedulers from configure_optimizers()",
    Kind.MODULE: "make modules attributes of the LightningModule, or save them in on_save_checkpoint()",
    Kind.TENSORS: "make tensors buffers of the LightningModule, or save them in on_save_checkpoint()",
    Kind.GENERATOR: "save the state of generators in on_save_checkpoint() and restore it in on_load_checkpoint()",
    Kind.SCALER: "let the Trainer scale gradients (precision='16-mixed'), or save the scaler in on_save_checkpoint()",
    Kind.LOADER: "return the loader from train_dataloader(), in a dict if there are several",
}


def host_of(trainer: Trainer, pl_module: LightningModule, held: Callable[[], Iterable[object]]) -> Host:
    """Return the view on a ``fit`` of *pl_module* by *trainer*, which saves the objects that *held* returns."""

    def roots() -> Iterator[tuple[str, object]]:
        yield "module", pl_module
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            yield "datamodule", trainer.datamodule  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            yield type(callback).__name__, callback
        yield "train_dataloader", trainer.train_dataloader

    def loaders() -> list[Any]:
        return [*loader_internals.training_loaders(trainer), *loader_internals.validation_loaders(trainer)]

    return Host(remedies=REMEDIES, roots=roots, loaders=loaders, held=held, log_level=facts.host_level, is_bare=False)
