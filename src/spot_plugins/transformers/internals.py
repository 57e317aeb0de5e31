"""
Private names of transformers that this package uses, and the check that the installed version has them.

Checked against transformers 5.23. :mod:`.overrides` calls the private methods below, which is why their
signatures are pinned here. Private names of its trackers are in :mod:`.tracker_internals`, those of TRL in
:mod:`.trl_internals`. No other module of this package touches a private name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers.trainer
import transformers.utils
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.internals import Library
from ..errors import ConfigError

TRANSFORMERS: Final = Library(package="transformers", checked="5.23.*")

METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "get_train_dataloader": (),
    "_inner_training_loop": ("batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_run_epoch": (
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_load_rng_state": ("checkpoint",),
    "_maybe_log_save_evaluate": (
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ),
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_save_checkpoint": ("model", "trial"),
    "_save": ("output_dir", "state_dict"),
    "_load_best_model": (),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    "_get_dataloader": ("dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"),
    "_get_train_sampler": ("train_dataset",),
    "_remove_unused_columns": ("dataset", "description"),
    "_get_collator_with_removed_columns": ("data_collator", "description"),
}
"""Methods of ``Trainer`` that are overridden or called, with the names of their parameters."""

ATTRIBUTES: Final = (
    "accelerator",
    "args",
    "callback_handler.callbacks",
    "control",
    "current_flos",
    "data_collator",
    "hp_search_backend",
    "is_deepspeed_enabled",
    "is_fsdp_enabled",
    "lr_scheduler",
    "state",
    "_train_batch_size",
)
"""Attributes of a ``Trainer`` that has not begun to train."""

LOSSES: Final = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "current_flos")
"""Numbers that a ``Trainer`` counts between two logs. The training loop sets most of them to 0 when it begins."""

OWN_LOOPS: Final = ("_inner_training_loop", "_run_epoch", "_maybe_log_save_evaluate")
"""Methods that a subclass overrides only if it has a training loop of its own."""

WEIGHTS: Final = tuple(
    getattr(transformers.utils, name)
    for name in (
        "WEIGHTS_NAME",
        "SAFE_WEIGHTS_NAME",
        "WEIGHTS_INDEX_NAME",
        "SAFE_WEIGHTS_INDEX_NAME",
        "ADAPTER_WEIGHTS_NAME",
        "ADAPTER_SAFE_WEIGHTS_NAME",
    )
)
"""Files with weights that a ``Trainer`` loads without FSDP."""

LOADER_METHODS: Final = ("get_train_dataloader", "_get_dataloader", "_get_train_sampler")
"""Methods that decide which samples a training sees, and in which order."""


def check(trainer: Trainer) -> None:
    """
    Check that the installed transformers has every private name that this package uses.

    It looks at the names and at signatures, and never compares versions, so that a newer version that kept them works.

    Raises:
        ConfigError: A name is missing, or a method has other parameters. The error names it.
    """
    TRANSFORMERS.require("Trainer", trainer, ATTRIBUTES)
    TRANSFORMERS.require("trainer", transformers.trainer, ("skip_first_batches",))
    TRANSFORMERS.require("Trainer", Trainer, METHODS)
    for name, expected in METHODS.items():
        found = tuple(inspect.signature(getattr(Trainer, name)).parameters)[1:]
        if found != expected:
            raise ConfigError(TRANSFORMERS.missing(f"Trainer.{name}({', '.join(expected)})"))


def trainer_under_construction() -> Trainer | None:
    """Return the trainer whose ``__init__`` calls this function, through the event ``on_init_end``."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code is inspect.unwrap(Trainer.__init__).__code__:
            found = frame.f_locals.get("self")
            return found if isinstance(found, Trainer) else None
    return None


@contextmanager
def skipping(skip: Callable[[Any, int], Any]) -> Iterator[None]:
    """Let the trainer call *skip* to leave out the batches of an epoch that are done, in place of Accelerate's."""
    original = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = skip
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = original


def loss_counters(trainer: Trainer) -> dict[str, Any]:
    """Return the loss since the last log, and the numbers of :data:`LOSSES`. All 0 before the first step."""
    loss = getattr(trainer, "_tr_loss", None)
    counters = {name: float(getattr(trainer, name, 0)) for name in LOSSES}
    return {"_tr_loss": torch.zeros(()) if loss is None else loss.detach().clone(), **counters}


def set_loss_counters(trainer: Trainer, counters: Mapping[str, Any]) -> None:
    """Set what :func:`loss_counters` returned."""
    trainer._tr_loss = counters["_tr_loss"].to(trainer.args.device)
    trainer._total_loss_scalar = counters["_total_loss_scalar"]
    trainer._globalstep_last_logged = int(counters["_globalstep_last_logged"])
    trainer._initial_global_step = int(counters["_initial_global_step"])
    trainer.current_flos = counters["current_flos"]


def loss_since_log(trainer: Trainer) -> Any:
    """Return the loss that is summed up for the next log."""
    return trainer._tr_loss


def batch_size(trainer: Trainer) -> int:
    """Return the samples of one batch of this rank."""
    return int(trainer._train_batch_size)


def make_checkpoint_folder(trainer: Trainer) -> None:
    """
    Make the folder of the checkpoint that the trainer writes next.

    Under FSDP the trainer looks whether the best checkpoint has a folder before all ranks have made it. Ranks that find
    different answers hang at the end of the training, and ranks that find none load an older checkpoint.
    """
    checkpoint_folder(trainer, trainer.state.global_step).mkdir(parents=True, exist_ok=True)


def checkpoint_folder(trainer: Trainer, step: int) -> Path:
    """Return the folder of the checkpoint that the trainer writes at *step*."""
    return Path(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def step_of_checkpoint(path: str) -> int | None:
    """Return the step of the checkpoint at *path*, which the trainer has named, or None if the name is another one."""
    found = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-([0-9]+)", Path(path).name)
    return None if found is None else int(found[1])


def save_weights(trainer: Trainer, folder: Path, state: Mapping[str, Any]) -> None:
    """Write *state*, that of the whole model, to *folder* as the trainer writes the weights of its checkpoints."""
    trainer._save(str(folder), state_dict=dict(state))


def all_ranks_write(trainer: Trainer) -> bool:
    """Return False if rank 0 writes the weights of a checkpoint, from which all ranks get them."""
    return bool(trainer.args.save_on_each_node or (trainer.is_fsdp_enabled and _is_sharded(trainer)))


def has_weights(trainer: Trainer, checkpoint: Path) -> bool:
    """Return True if *checkpoint* has weights that the trainer loads at the end of a training."""
    names = WEIGHTS
    if trainer.is_fsdp_enabled:
        names = (f"{FSDP_MODEL_NAME}_0" if _is_sharded(trainer) else f"{FSDP_MODEL_NAME}.bin",)
    return any((checkpoint / name).exists() for name in names)


def _is_sharded(trainer: Trainer) -> bool:
    return bool(trainer.accelerator.state.fsdp_plugin.state_dict_type.name == "SHARDED_STATE_DICT")


def lengths_of_samples(trainer: Trainer) -> list[int]:
    """Return the length of each training sample, as the trainer's own ``group_by_length`` finds it."""
    lengths: list[int] = trainer._get_train_sampler(trainer.train_dataset).lengths
    return lengths


def dataset_and_collator(trainer: Trainer) -> tuple[Any, Any]:
    """Return the training data and the collator, without the columns that the model does not take."""
    from transformers.utils import is_datasets_available

    data = trainer.train_dataset
    if is_datasets_available():
        import datasets

        if isinstance(data, datasets.Dataset):
            return trainer._remove_unused_columns(data, description="Training"), trainer.data_collator
    return data, trainer._get_collator_with_removed_columns(trainer.data_collator, description="Training")
