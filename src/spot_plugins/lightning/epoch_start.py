"""The hooks ``on_train_epoch_start``, which Lightning leaves out when it continues in the middle of an epoch."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LearningRateMonitor

from . import internals

HOOK = "on_train_epoch_start"


def call_epoch_start_hooks(trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
    """
    Call the hooks of the callbacks and then of the module, as Lightning does at the beginning of an epoch.

    They set up what is not saved, such as a list in the module or an averaged model in a callback. The caller undoes
    afterwards what they change in saved state.

    Left out are two callbacks of Lightning. A :class:`BaseFinetuning` keeps all its effects in saved state, and a
    :class:`LearningRateMonitor` has nothing but its entry in the log, which is there already.
    """
    with internals.in_hook(pl_module, HOOK):
        for callback in _callbacks(trainer, own):
            callback.on_train_epoch_start(trainer, pl_module)
        pl_module.on_train_epoch_start()


def may_change_data(trainer: Trainer, pl_module: LightningModule, own: Callback) -> bool:
    """Return True if a hook of the program's own is among them. It may tell a sampler or data set the epoch."""
    if type(pl_module).on_train_epoch_start is not LightningModule.on_train_epoch_start:
        return True
    return any(
        HOOK in vars(callback) or not _defining_module(callback).startswith("lightning.")
        for callback in _callbacks(trainer, own)
    )


def _callbacks(trainer: Trainer, own: Callback) -> list[Callback]:
    hooks = (BaseFinetuning.on_train_epoch_start, LearningRateMonitor.on_train_epoch_start)
    return [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if callback is not own and type(callback).on_train_epoch_start not in hooks
    ]


def _defining_module(callback: Callback) -> str:
    """Return the name of the Python module that defines the hook of *callback*."""
    return next(base.__module__ for base in type(callback).__mro__ if HOOK in vars(base))
