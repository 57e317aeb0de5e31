"""
The best checkpoints of Lightning's ``ModelCheckpoint``, kept in the store of the run so that they outlive the machine.

``ModelCheckpoint`` writes files to the local disk and remembers their paths in its state. For each of its best files
this module keeps the step of the file in the store. After a resume it writes the files that are missing again, from
the kept steps.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..errors import SpotError
from ..session import SpotSession
from ..state import by_index, clean_name
from . import internals
from .precision import own_state
from .restored_paths import PATHS, believed, is_below, is_local

logger = logging.getLogger(__name__)

OWNER: Final = "lightning"
STATE_KEY: Final = "spot_plugins/best"
"""Key of the state of this module among the states of the callbacks."""

_VERSION: Final = re.compile(r"version_\d+")
_AFTER_TRAINING: Final = (StochasticWeightAveraging, WeightAveraging)  # they change the weights in on_train_end


class BestFiles:
    """
    The files of all ``ModelCheckpoint`` callbacks of one ``fit``, with the steps at which they were written.

    Files of a callback with a ``monitor`` are kept: its best ones, or only the best if ``save_top_k=-1``. A directory
    that is a URL needs none of this. The same calls are made on every rank; rank 0 writes the files.

    Args:
        trainer: The trainer, before the callbacks are set up.
        session: The session of the run.
    """

    def __init__(self, trainer: Trainer, session: SpotSession) -> None:
        self._trainer = trainer
        self._session = session
        self._files: dict[str, dict[str, Any]] = {}
        self._new: dict[str, dict[str, Any]] = {}
        self._asked: set[int] = set()
        self._without_dirpath = [each for each in self._checkpoints() if each.dirpath is None]
        original = trainer.save_checkpoint

        def save_checkpoint(filepath: Any, *args: Any, **kwargs: Any) -> None:
            original(filepath, *args, **kwargs)
            self._new[str(filepath)] = {
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "fit_loop": internals.fit_loop_state(trainer),
                "callbacks": {each.state_key: deepcopy(each.state_dict()) for each in self._judges()},
            }

        trainer.__dict__["save_checkpoint"] = save_checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the files that a callback still names."""
        named = {path for each in self._checkpoints() for path in _named_by(each)}
        return {path: entry for path, entry in self._files.items() if path in named}

    def load_state_dict(self, files: dict[str, Any]) -> None:
        """Restore the files of earlier lives."""
        self._files = dict(files)

    def in_this_directory(self, callback: Callback, state: dict[str, Any]) -> dict[str, Any]:
        """
        Return the *state* of *callback* as it applies to this life, whose logger may have begun a new directory.

        Paths outside of the directory of the callback are left out, because the state comes from the store. Without a
        ``dirpath``, the directories of the logger beside it are accepted too.
        """
        if not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
            return state
        here = str(callback.dirpath)
        if callback not in self._without_dirpath:
            return believed(callback, state, [here])
        log = os.path.dirname(os.path.dirname(here)) if self._trainer.loggers else here
        return believed(callback, self._moved(callback, state, log), [str(callback.dirpath), log])

    def _moved(self, callback: ModelCheckpoint, state: dict[str, Any], log: str) -> dict[str, Any]:
        """
        Return the *state* of *callback*, which has no ``dirpath``, as if its directory in *log* had not changed.

        Lightning drops the best files if the directory has changed. Without a ``dirpath`` nobody has asked for a
        change. Then the ``version_0`` of the first life stays in use, or the files move to the new directory.
        """
        here, there = callback.dirpath, state.get("dirpath")
        if not here or not there or here == there or not (is_local(here) and is_local(there)):
            return state
        versions = [Path(each).parent for each in (here, there)]
        is_same_log = versions[0].parent == versions[1].parent and Path(here).name == Path(there).name
        if is_same_log and all(_VERSION.fullmatch(each.name) for each in versions):
            callback.dirpath = there
            return state
        paths = {path for path in (*state["best_k_models"], *(state[name] for name in PATHS)) if is_below(path, log)}
        # wait: until the timeout of the process group, in torch; the collective fails
        stay = self._trainer.strategy.broadcast([path for path in sorted(paths) if os.path.exists(path)])

        def moved(path: str) -> str:
            inside = path.startswith(os.path.join(there, ""))
            return os.path.join(here, path[len(there) :].lstrip(os.sep)) if inside and path not in stay else path

        self._files = {moved(path): entry for path, entry in self._files.items()}
        best = {moved(path): score for path, score in state["best_k_models"].items()}
        return {**state, "dirpath": here, "best_k_models": best, **{name: moved(state[name]) for name in PATHS}}

    def restore(self, module: LightningModule) -> None:
        """Write the files that are missing on this machine, after a resume. Every rank calls this."""
        self._asked = set(self._session.keeper.steps_of(OWNER))
        if not self._can_keep:
            return
        if wanted := self._wanted():
            self._release_others(wanted, max(wanted))  # those that an earlier process did not come to release
        if not self._trainer.is_global_zero:
            return
        best = {path for each in self._checkpoints() for path in _best_of(each)}
        for path in sorted({path for each in self._checkpoints() for path in _inside(each)}):
            if path in self._files and not os.path.lexists(path):
                try:
                    self._write(path, module)
                except (SpotError, OSError) as error:
                    say = rank_zero_warn if path in best else rank_zero_info
                    say(f"{path} was on another machine and cannot be written again: {error}")

    def hold(self, step: int, *, is_last_batch: bool, validates: bool) -> None:
        """
        Copy the state of *step* if a best file may be written after it, when the live state has changed already.

        Files are written after a validation and at the end of an epoch. The training waits for room for the copy, but
        not longer than the grace, and not after a notice.
        """
        epoch = self._trainer.current_epoch + 1
        if self._can_keep and any(
            validates or (is_last_batch and each.every_n_epochs and epoch % each.every_n_epochs == 0)
            for each in self._checkpoints()
            if each.monitor is not None and each.save_top_k != 0 and is_local(each.dirpath)
        ):
            self._session.keeper.hold(step)

    def keep(self, step: int, *, saves_live: bool = False) -> None:
        """
        Keep *step* if one of the best files was written after it, and release the steps whose files are gone.

        Args:
            step: The step that was reported last.
            saves_live: Whether the live state is that of *step*, as training continues from it.
        """
        if not self._new:
            return
        self._files |= {path: {**entry, "step": step} for path, entry in self._new.items()}
        self._new = {}
        if not self._can_keep:
            return
        wanted = self._wanted()
        for each in sorted(wanted - self._asked):
            self._session.keeper.keep(each, OWNER, saves_live=saves_live)
        self._release_others(wanted, step)

    def _wanted(self) -> set[int]:
        """Return the steps after which the best files were written."""
        best = {path for each in self._checkpoints() for path in _best_of(each)}
        return {self._files[path]["step"] for path in best if path in self._files}

    def _release_others(self, wanted: set[int], named_by: int) -> None:
        for each in sorted(self._asked - wanted):
            self._session.keeper.release_after(each, OWNER, named_by=named_by)
        self._asked = wanted

    def finish(self, step: int) -> None:
        """Keep the last step, if it is one of the best, and warn of best files that are lost."""
        if self._new and not any(isinstance(each, _AFTER_TRAINING) for each in self._callbacks()):
            self._session.keeper.forget_held()  # the state at the end of the training is more complete
        self.keep(step, saves_live=True)
        for each in self._checkpoints() if self._trainer.is_global_zero else ():
            path = each.best_model_path
            if path and is_local(path) and not os.path.exists(path):
                remedy = "Give ModelCheckpoint a dirpath that every machine sees"
                if self._can_keep and each.monitor is None:
                    remedy += ", or a monitor, so that the run keeps its best steps"
                rank_zero_warn(
                    f"best_model_path={path!r} was on another machine, so ckpt_path='best' finds no file. {remedy}"
                )

    def close(self) -> None:
        """Give the trainer its own method back."""
        self._trainer.__dict__.pop("save_checkpoint", None)

    @property
    def _can_keep(self) -> bool:
        """True if a file of this strategy is one dict with whole tensors, as written by rank 0."""
        return isinstance(self._trainer.strategy, SingleDeviceStrategy | DDPStrategy)

    def _callbacks(self) -> list[Callback]:
        return self._trainer.callbacks  # type: ignore[attr-defined, no-any-return]

    def _checkpoints(self) -> list[ModelCheckpoint]:
        return [each for each in self._callbacks() if isinstance(each, ModelCheckpoint)]

    def _judges(self) -> list[Callback]:
        """Return the callbacks whose state changes after the state of the step was copied, by the validation."""
        return [each for each in self._callbacks() if isinstance(each, ModelCheckpoint | EarlyStopping)]

    def _write(self, path: str, module: LightningModule) -> None:
        """Write the checkpoint *path* as Lightning would, from the state of its step."""
        entry = self._files[path]
        state = self._session.keeper.state_of(entry["step"])
        weights_only = all(each.save_weights_only for each in self._checkpoints() if path in _named_by(each))
        checkpoint = self._checkpoint(entry, state, module, weights_only=weights_only)
        unfinished = Path(f"{path}.{os.getpid()}.tmp")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        rank_zero_info(f"{path} was on another machine and is written again, from step {entry['step']} of the run")

    def _checkpoint(
        self, entry: dict[str, Any], state: dict[str, Any], module: LightningModule, *, weights_only: bool
    ) -> dict[str, Any]:
        model = state["model"]
        saved = {**model["parameters"], **model["buffers"], **model["extra"]}
        own_names = {clean_name(name): name for name in module.state_dict()}
        checkpoint: dict[str, Any] = {
            "epoch": entry["epoch"],
            "global_step": entry["global_step"],
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": {own_names.get(name, name): value for name, value in saved.items()},
            "loops": {**internals.loops_state(self._trainer), "fit_loop": entry["fit_loop"]},
        }
        if not weights_only:
            callbacks = {**state["callbacks"], **entry["callbacks"]}
            checkpoint["callbacks"] = {key: each for key, each in callbacks.items() if key != STATE_KEY}
            checkpoint["optimizer_states"] = [by_index(each) for each in _numbered(state, "optimizer")]
            checkpoint["lr_schedulers"] = list(_numbered(state, "scheduler"))
            if state["precision"]:
                plugin = self._trainer.precision_plugin
                checkpoint[type(plugin).__qualname__] = own_state(plugin, state["precision"])
        datamodule = self._trainer.datamodule  # type: ignore[attr-defined]
        for each in (module, datamodule):
            checkpoint |= internals.hyper_parameters(each)
        if state.get("datamodule"):
            checkpoint[type(datamodule).__qualname__] = state["datamodule"]
        checkpoint |= state["checkpoint-hooks"]
        return checkpoint


def _named_by(callback: ModelCheckpoint) -> set[str]:
    """Return the paths in the state of *callback*."""
    return {*callback.best_k_models, callback.best_model_path, callback.last_model_path} - {""}


def _best_of(callback: ModelCheckpoint) -> set[str]:
    """Return the files whose steps are worth keeping."""
    if callback.monitor is None or not is_local(callback.dirpath):
        return set()
    return set(callback.best_k_models) if callback.save_top_k > 0 else {callback.best_model_path} - {""}


def _inside(callback: ModelCheckpoint) -> Iterator[str]:
    """Yield the files that *callback* names and that lie below its directory. The names come from the store."""
    if callback.dirpath is None or not is_local(callback.dirpath):
        return
    for path in _named_by(callback):
        if path.endswith(callback.FILE_EXTENSION) and is_below(path, str(callback.dirpath)):
            yield path


def _numbered(state: dict[str, Any], word: str) -> Iterator[Any]:
    """Yield the states of the parts ``word-0``, ``word-1`` and so on."""
    number = 0
    while f"{word}-{number}" in state:
        yield state[f"{word}-{number}"]
        number += 1
