"""Small pieces of state in Lightning, each with ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from torch import nn

from ..state import ShardedPart, clean_name
from .best import STATE_KEY, BestFiles
from .internals import is_flat_parameter
from .kept import is_same_state


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
        self._states: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback that has any, by its ``state_key``."""
        states = {callback.state_key: callback.state_dict() for callback in self._callbacks}
        states[STATE_KEY] = self._best.state_dict()
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore every callback whose state was saved."""
        self._best.load_state_dict(states.get(STATE_KEY, {}))
        self._states = states
        for callback in self._callbacks:
            if callback.state_key in states:
                self._load(callback, states[callback.state_key])

    def restore_again(self) -> None:
        """Restore the callbacks once more whose state hooks have changed since, and let go of the loaded states."""
        states, self._states = self._states, {}
        for callback in self._callbacks:
            state = states.get(callback.state_key)
            if state is not None and not is_same_state(callback.state_dict(), state):
                self._load(callback, state)

    def _load(self, callback: Callback, state: Any) -> None:
        patience = callback.patience if isinstance(callback, EarlyStopping) else None
        callback.load_state_dict(deepcopy(self._best.in_this_directory(callback, state)))
        if isinstance(callback, EarlyStopping) and patience is not None:
            callback.patience = patience  # a setting, although Lightning saves it with the state
        if isinstance(callback, BaseFinetuning):
            # This hook makes the groups of the optimizer from that state. Lightning called it before.
            callback.on_fit_start(self._trainer, self._module)
