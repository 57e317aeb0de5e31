"""Files ``.ckpt`` of Lightning, as its ``ModelCheckpoint`` would have written them. Lightning is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..errors import ConfigError
from ..resume.weights import KINDS, Weights, entry_of, open_weights
from ..state import by_index
from ..state.scaler import numbers_of
from .outputs import Exported, check_new, exported, new_file
from .stored_state import StoredState
from .torch_stream import write_state

_BEFORE_VERSIONS: Final = "2.6.0"
"""The version that a checkpoint without a version of Lightning was saved with, or a later one of the same format."""

_OWN: Final = "spot_plugins/best"
"""The key that this package has among the states of callbacks."""

_COUNTS: Final = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
_NOT_BEGUN: Final = {"total": _COUNTS, "current": _COUNTS}
_OTHER_LOOPS: Final = {
    "validate_loop": {"state_dict": {}, "batch_progress": {**_NOT_BEGUN, "is_last_batch": False}},
    "test_loop": {"state_dict": {}, "batch_progress": {**_NOT_BEGUN, "is_last_batch": False}},
    "predict_loop": {"state_dict": {}, "batch_progress": _NOT_BEGUN},
}
"""The state of loops that have not run."""


def export_lightning(
    url: str,
    out: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """
    Write a committed step of a training with Lightning to *out*, a file for ``trainer.fit(ckpt_path=...)``.

    It has what ``ModelCheckpoint(every_n_train_steps=1)`` would have written after that step, but no hyperparameters
    and no positions of loaders. A few tensors are in memory at a time.

    Arguments and errors are those of :func:`~.safetensors.export_weights`.
    """
    check_new(out)
    weights = open_weights(url, step, kept=kept, storage_options=storage_options)
    if not isinstance(entry_of(entry_of(weights.manifests[0].state, "loops"), "fit_loop"), dict):
        raise ConfigError("this run was not trained with Lightning, so it has no loops that a .ckpt needs")
    stored = StoredState(weights)
    with stored.errors():
        checkpoint = _checkpoint(weights, stored)
    notes = []
    if stored.any_part("datamodule"):
        notes.append("the state of the data module is left out, because the step does not name its class")
    with new_file(out) as file:
        write_state(file, checkpoint, stored)
    return exported(weights, weights.tensors, notes)


def _checkpoint(weights: Weights, stored: StoredState) -> dict[str, Any]:
    model = stored.any_part(weights.part)
    fit_loop = stored.whole_part("loops")["fit_loop"]
    callbacks = stored.any_part("callbacks") or {}
    software = entry_of(entry_of(weights.manifests[0].state, "program"), "software")
    checkpoint = {
        "epoch": fit_loop["epoch_progress"]["current"]["processed"],
        "global_step": _global_step(fit_loop),
        "pytorch-lightning_version": entry_of(software, "lightning") or _BEFORE_VERSIONS,
        "state_dict": {name: value for kind in KINDS for name, value in model[kind].items()},
        "loops": {"fit_loop": fit_loop, **_OTHER_LOOPS},
        "callbacks": {name: state for name, state in callbacks.items() if name != _OWN},
        "optimizer_states": [by_index(stored.any_part(name)) for name in stored.optimizers()],
        "lr_schedulers": list(_schedulers(stored)),
        **(stored.any_part("checkpoint-hooks") or {}),
    }
    if "scale" in (precision := stored.whole_part("precision") or {}):
        checkpoint["MixedPrecision"] = numbers_of(precision)
    return checkpoint


def _global_step(fit_loop: Mapping[str, Any]) -> int:
    """Return the number of steps of all optimizers, as Lightning counts them."""
    automatic = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = fit_loop["epoch_loop.manual_optimization.optim_step_progress"]
    return int(automatic["total"]["completed"] + manual["total"]["completed"])


def _schedulers(stored: StoredState) -> Iterator[Any]:
    number = 0
    while (state := stored.any_part(f"scheduler-{number}")) is not None:
        yield state
        number += 1
