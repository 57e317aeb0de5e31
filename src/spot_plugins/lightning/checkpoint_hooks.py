"""The hooks ``on_save_checkpoint`` and ``on_load_checkpoint``, and the checkpoint that they are called with."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from lightning.fabric.utilities import AttributeDict as FabricAttributeDict
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import AttributeDict

from ..state import is_flat, register_dict_kind
from . import internals
from .kept import is_same_state
from .precision import precision_part

# Kinds of self.hparams, which a hook may put into a checkpoint. Both have no state but their items.
register_dict_kind("lightning.fabric.AttributeDict", FabricAttributeDict)
register_dict_kind("lightning.pytorch.AttributeDict", AttributeDict)

_NOT_MADE: Final = object()


class CheckpointHooksPart:
    """The changes that ``on_save_checkpoint`` of the module and the callbacks make to a checkpoint."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._callbacks = [callback for callback in trainer.callbacks if callback is not own]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """
        Call the hooks with a checkpoint that has the usual keys, and return the keys that they added or changed.

        Tensors of the module are not stored twice, because the encoder recognizes them by their memory.
        """
        checkpoint = UsualCheckpoint(self._makers())
        before = dict(checkpoint["state_dict"])
        with internals.in_hook(self._module, "on_save_checkpoint"):
            for callback in self._callbacks:
                callback.on_save_checkpoint(self._trainer, self._module, checkpoint)
            self._module.on_save_checkpoint(checkpoint)
        changed = checkpoint.changed()
        if "state_dict" in changed and _same_objects(changed["state_dict"], before):
            del changed["state_dict"]
        return changed

    def load_state_dict(self, changed: dict[str, Any]) -> None:
        """Call the hooks that load, if the hooks that save changed anything."""
        if not changed:
            return
        checkpoint = UsualCheckpoint(self._makers())
        checkpoint.update(changed)
        with internals.in_hook(self._module, "on_load_checkpoint"):
            for callback in self._callbacks:
                callback.on_load_checkpoint(self._trainer, self._module, checkpoint)
            self._module.on_load_checkpoint(checkpoint)

    def _makers(self) -> dict[str, Callable[[], Any]]:
        trainer, module = self._trainer, self._module
        precision, datamodule = trainer.precision_plugin, trainer.datamodule  # type: ignore[attr-defined]
        makers: dict[str, Callable[[], Any]] = {
            "epoch": lambda: trainer.current_epoch,
            "global_step": lambda: trainer.global_step,
            "pytorch-lightning_version": lambda: version("lightning"),
            # FSDP1 would gather all weights on every rank.
            "state_dict": lambda: {} if is_flat(module) else module.state_dict(),
            "loops": lambda: internals.loops_state(trainer),
            "callbacks": self._callback_states,
            "optimizer_states": lambda: [trainer.strategy.optimizer_state(each) for each in trainer.optimizers],
            "lr_schedulers": lambda: [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        }
        if precision_part(precision).state_dict():
            makers[type(precision).__qualname__] = precision.state_dict
        for owner in (module, datamodule):
            makers |= {key: partial(_hyper_parameter, owner, key) for key in internals.hyper_parameters(owner)}
        if datamodule is not None and (state := datamodule.state_dict()):
            makers[type(datamodule).__qualname__] = lambda: state
        return makers

    def _callback_states(self) -> dict[str, Any]:
        states = {callback.state_key: callback.state_dict() for callback in self._callbacks}
        return {key: state for key, state in states.items() if state}


class UsualCheckpoint(dict[str, Any]):
    """
    A checkpoint with the keys that Lightning gives it. The value of a key is made when it is read for the first time.

    Most hooks read no more than a few keys, and the states of optimizers are large.
    """

    def __init__(self, makers: dict[str, Callable[[], Any]]) -> None:
        super().__init__(dict.fromkeys(makers, _NOT_MADE))
        self._makers = makers

    def changed(self) -> dict[str, Any]:
        """Return what was added, and what was changed of the usual keys. ``state_dict`` if it was read at all."""
        changed = {}
        for key, value in super().items():
            if value is _NOT_MADE:
                continue
            if key in self._makers and key != "state_dict":
                usual = self._makers[key]()
                if value is usual or is_same_state(value, usual):
                    continue
            changed[key] = value
        return changed

    def __getitem__(self, key: str) -> Any:
        """Return the value of *key*, and make it first if necessary."""
        value = super().__getitem__(key)
        if value is _NOT_MADE:
            value = self._makers[key]()
            super().__setitem__(key, value)
        return value

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys. With this method, ``dict(checkpoint)`` asks for each value."""
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Return the keys."""
        return KeysView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return the values, which are made now."""
        return ValuesView(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return keys and values. The values are made when the view is iterated."""
        return ItemsView(self)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        return self[key] if key in self else default  # noqa: SIM401 - that would be this method

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, after setting it to *default* if it is missing."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        """Remove *key* and return its value."""
        if key in self:
            value = self[key]
            del self[key]
            return value
        return super().pop(key, *default)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict with all values."""
        return dict(self.items())


def _hyper_parameter(owner: Any, key: str) -> Any:
    return internals.hyper_parameters(owner)[key]


def _same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
