"""Small pieces of state in Lightning, each with ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from ..state import ShardedPart, clean_name, is_flat
from .best import STATE_KEY, BestFiles
from .internals import is_flat_parameter


class DeferredPart(ShardedPart):
    """Part that keeps its restored state until :meth:`apply`, because something before that would change it again."""

    def __init__(self, part: ShardedPart) -> None:
        self._part = part
        self._state: Any = None

    def state_dict(self) -> Any:
        """Return the state of the part."""
        return self._part.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Keep *state* for :meth:`apply`."""
        self._state = state

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """Return the state of a rank that is new to the run."""
        return self._part.for_new_rank(state, rank)

    def apply(self) -> None:
        """Restore the part from the kept state, if there is one."""
        if self._state is not None:
            self._part.load_state_dict(self._state)
            self._state = None


class FrozenPart:
    """Parameters and statistics that callbacks have frozen. In the next process these callbacks begin from scratch."""

    def __init__(self, pl_module: LightningModule) -> None:
        self._module = pl_module

    def state_dict(self) -> dict[str, list[str]]:
        """Return the names of the parameters without gradient, and of the modules without running statistics."""
        return {
            "parameters": [name for name, value in self._parameters() if not value.requires_grad],
            "statistics": [name for name, module in self._normalizing() if not module.track_running_stats],
        }

    def load_state_dict(self, frozen: dict[str, list[str]]) -> None:
        """Freeze what is named in *frozen*, and nothing else."""
        for name, value in self._parameters():
            value.requires_grad_(name not in frozen["parameters"])
        for name, module in self._normalizing():
            module.track_running_stats = name not in frozen["statistics"]

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what can be frozen by name. A flat parameter of FSDP1 is trained as a whole or not at all."""
        for name, value in self._module.named_parameters():
            if not is_flat_parameter(name):
                yield clean_name(name), value

    def _normalizing(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._module.named_modules():
            if hasattr(module, "track_running_stats"):
                yield clean_name(name), module


class CallbacksPart:
    """The state of the other callbacks. A callback that is new to the run begins fresh, as in Lightning."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule, own: Callback, best: BestFiles) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._callbacks = [callback for callback in trainer.callbacks if callback is not own]  # type: ignore[attr-defined]
        self._best = best

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback that has any, by its ``state_key``."""
        states = {callback.state_key: callback.state_dict() for callback in self._callbacks}
        states[STATE_KEY] = self._best.state_dict()
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore every callback whose state was saved."""
        self._best.load_state_dict(states.get(STATE_KEY, {}))
        for callback in self._callbacks:
            if callback.state_key in states:
                state = self._best.in_this_directory(callback, states[callback.state_key])
                callback.load_state_dict(state)
                if isinstance(callback, BaseFinetuning):
                    # This hook makes the groups of the optimizer from that state. Lightning called it before.
                    callback.on_fit_start(self._trainer, self._module)


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
        checkpoint = self._usual()
        before = {**checkpoint, "state_dict": dict(checkpoint["state_dict"])}
        for callback in self._callbacks:
            callback.on_save_checkpoint(self._trainer, self._module, checkpoint)
        self._module.on_save_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]
        if _same_objects(weights, before["state_dict"]):
            del checkpoint["state_dict"]
        return {key: value for key, value in checkpoint.items() if key not in before or key == "state_dict"}

    def load_state_dict(self, changed: dict[str, Any]) -> None:
        """Call the hooks that load, if the hooks that save changed anything."""
        if not changed:
            return
        checkpoint = {**self._usual(), **changed}
        for callback in self._callbacks:
            callback.on_load_checkpoint(self._trainer, self._module, checkpoint)
        self._module.on_load_checkpoint(checkpoint)

    def _usual(self) -> dict[str, Any]:
        return {
            "epoch": self._trainer.current_epoch,
            "global_step": self._trainer.global_step,
            # FSDP1 would gather all weights on every rank.
            "state_dict": {} if is_flat(self._module) else self._module.state_dict(),
        }


def _same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
