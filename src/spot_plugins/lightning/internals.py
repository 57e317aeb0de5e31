"""
Private names of Lightning that this package uses, each in a small function.

Those around loaders are in :mod:`.loader_internals`.

Checked against lightning 2.6 and torchmetrics 1.9. :func:`check` runs at the start of every ``fit`` and names the
attribute that an installed version lacks. The drills in ``tests/drills`` pin what the attributes mean.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Final

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loops.evaluation_loop import RestartStage as EvaluationRestart
from lightning.pytorch.utilities import CombinedLoader

from ..data.internals import Library, check_torch
from ..errors import ConfigError

LIGHTNING: Final = Library(package="lightning", checked="2.6.*")
TORCHMETRICS: Final = Library(package="torchmetrics", checked="1.9.*")

try:
    from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
except ImportError as error:
    raise ConfigError(LIGHTNING.missing(f"private class: {error}")) from error

_FILES_OF_FINDERS: Final = (".lr_find_", ".scale_batch_size_")
"""Beginnings of the names of the files in which a finder keeps the state from before its trials."""

TRAINER_ATTRIBUTES: Final = (
    "_checkpoint_connector._ckpt_path",
    "_checkpoint_connector._loaded_checkpoint",
    "_checkpoint_connector.resume_start",
    "_logger_connector._callback_metrics",
    "_logger_connector._first_loop_iter",
    "_signal_connector._sigterm_notifier_fn",
    "fit_loop._can_stop_early",
    "fit_loop._combined_loader",
    "fit_loop._data_fetcher",
    "fit_loop._last_train_dl_reload_epoch",
    "fit_loop._load_combined_loader_states",
    "fit_loop._restarting",
    "fit_loop.epoch_loop._accumulated_batches_reached",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._on_before_fetch",
    "fit_loop.epoch_loop._results",
    "fit_loop.epoch_loop._should_check_val_epoch",
    "fit_loop.epoch_loop._should_check_val_fx",
    "fit_loop.epoch_loop._update_learning_rates",
    "fit_loop.epoch_loop.automatic_optimization._make_zero_grad_fn",
    "fit_loop.epoch_loop.val_loop._combined_loader",
    "fit_loop.epoch_loop.val_loop._has_run",
    "fit_loop.epoch_loop.val_loop._restart_stage",
)
"""Attributes of a new trainer that the functions below read or write."""


def check(trainer: Trainer) -> None:
    """
    Check that the installed Lightning has every private attribute that this module uses.

    It looks at the attributes and never compares versions, so that a newer version that kept them works.

    Raises:
        ConfigError: An attribute is missing. The error names it and the version to install.
    """
    check_torch()
    LIGHTNING.require("Trainer", trainer, TRAINER_ATTRIBUTES)
    combined = iter(CombinedLoader([[0]], "max_size_cycle"))
    LIGHTNING.require("CombinedLoader", combined, ("_flattened", "_mode", "_iterator._idx", "_iterator._consumed"))
    LIGHTNING.require("_Sync", _Sync(), ("_should", "_op"))
    metric = _ResultMetric(_Metadata(fx="on_fit_start", name="probe"), is_tensor=True)
    TORCHMETRICS.require("Metric", metric, ("_update_count",))


# ---- signals


def stop_sigterm_broadcast(trainer: Trainer) -> None:
    """
    Replace the part of Lightning's SIGTERM handler that broadcasts. Lightning calls our handler after it.

    A rank that alone gets the signal hangs or crashes in that broadcast. The replacement has to be there before
    Lightning installs its handler, because the first hook after that comes after a barrier that may last long.
    """
    trainer._signal_connector.__dict__["_sigterm_notifier_fn"] = _do_nothing


def allow_sigterm_broadcast(trainer: Trainer) -> None:
    """Undo :func:`stop_sigterm_broadcast`."""
    trainer._signal_connector.__dict__.pop("_sigterm_notifier_fn", None)


# ---- the checkpoint of ckpt_path


def ignore_ckpt_path(trainer: Trainer, warn: Callable[[str], None]) -> None:
    """
    Let Lightning restore nothing from ``ckpt_path`` after ``on_fit_start``, and not print that it has.

    With a sharding strategy Lightning reads the checkpoint after that hook, with any other one before. After the hook
    it restores optimizers and loops from the checkpoint.

    Args:
        trainer: The trainer whose ``fit`` has called ``on_fit_start``.
        warn: Called with the path, if there is one.
    """
    connector = trainer._checkpoint_connector
    if connector._ckpt_path and not os.path.basename(connector._ckpt_path).startswith(_FILES_OF_FINDERS):
        warn(str(connector._ckpt_path))
    connector._loaded_checkpoint = {}
    connector._ckpt_path = None

    def resume_start(checkpoint_path: object = None, **settings: object) -> None:
        if checkpoint_path:
            warn(str(checkpoint_path))

    connector.__dict__["resume_start"] = resume_start


def allow_ckpt_path(trainer: Trainer) -> None:
    """Let the next ``fit`` of the same trainer use its ``ckpt_path``."""
    trainer._checkpoint_connector.__dict__.pop("resume_start", None)


# ---- loops


def validation_is_due(trainer: Trainer) -> bool:
    """Return True if validation follows the batch that was trained on last."""
    fit_loop = trainer.fit_loop
    assert fit_loop._data_fetcher is not None
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


def can_stop(trainer: Trainer) -> bool:
    """Return True if ``min_epochs`` and ``min_steps`` are reached."""
    return trainer.fit_loop._can_stop_early


def duration(timer: Timer) -> float | None:
    """Return the seconds after which *timer* ends the training."""
    return timer._duration


def validation_is_near(trainer: Trainer, num_batches: int, seconds: float) -> bool:
    """
    Return True if validation may come before *num_batches* more batches are trained on, which take about *seconds*.

    Batches after the end of the epoch do not count, because the last batch of an epoch completes a step.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    if num_batches < 2 or not epoch_loop._should_check_val_epoch():
        return False
    interval_s = trainer._val_check_time_interval  # type: ignore[attr-defined]
    if interval_s is not None:
        return bool(time.monotonic() - trainer._last_val_time + 2 * seconds >= interval_s)  # type: ignore[attr-defined]
    every, done = trainer.val_check_batch, epoch_loop.batch_idx + 1
    if every is None or every == float("inf"):
        return False
    left = min(num_batches - 1, trainer.num_training_batches - done - 1)
    counted = epoch_loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else done
    return left > 0 and counted // every < (counted + left) // every


def replace_first_epoch_start(trainer: Trainer, call: Callable[[Callable[[], None]], None]) -> None:
    """Run *call* in place of the first ``on_advance_start`` of the fit loop, with that method as its argument."""
    fit_loop = trainer.fit_loop
    original = fit_loop.on_advance_start

    def on_advance_start() -> None:
        keep_first_epoch_start(trainer)
        call(original)

    fit_loop.__dict__["on_advance_start"] = on_advance_start


def keep_first_epoch_start(trainer: Trainer) -> None:
    """Undo :func:`replace_first_epoch_start`."""
    trainer.fit_loop.__dict__.pop("on_advance_start", None)


def forget_earlier_validation(trainer: Trainer) -> None:
    """
    Let the restored epoch not count as validated because an earlier ``fit`` of the same trainer has validated.

    The epoch would end at once if its last batch had been trained on.
    """
    trainer.fit_loop.epoch_loop.val_loop._has_run = False


def keep_logged_values(trainer: Trainer) -> None:
    """Let the next batch not count as the first of the epoch, at which Lightning drops what was logged before."""
    trainer._logger_connector._first_loop_iter = True


def end_restart(trainer: Trainer) -> None:
    """
    Let the epoch end like one that was never interrupted.

    At the end of a restarted epoch Lightning leaves out plateau schedulers, because it does not restore the metrics
    that they look at. This package restores them.
    """
    trainer.fit_loop._restarting = False


def validate_next(trainer: Trainer) -> None:
    """Let the epoch loop begin with the validation that was due after the restored batch."""
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    val_loop.batch_progress.reset_on_run()  # it counts the validation before
    val_loop._restart_stage = EvaluationRestart.RESTARTED_MID_EVALUATION


def end_batch(trainer: Trainer) -> None:
    """Do what ends a batch without validation. With validation Lightning does it after the validation."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
    epoch_loop._batches_that_stepped += 1


def count_windows_from(trainer: Trainer, first: Callable[[], int]) -> None:
    """Let windows of gradient accumulation begin with batch *first()* of the epoch, and not with its first batch."""
    epoch_loop = trainer.fit_loop.epoch_loop
    make_zero_grad_fn = epoch_loop.automatic_optimization._make_zero_grad_fn

    def accumulated_batches_reached() -> bool:
        return (epoch_loop.batch_progress.current.ready - first()) % trainer.accumulate_grad_batches == 0

    epoch_loop.__dict__["_accumulated_batches_reached"] = accumulated_batches_reached
    epoch_loop.automatic_optimization.__dict__["_make_zero_grad_fn"] = lambda batch_idx, optimizer: make_zero_grad_fn(
        batch_idx - first(), optimizer
    )


def replace_schedule_steps(trainer: Trainer, steps_due: Callable[[], Iterable[int]]) -> None:
    """
    Let schedules by steps make the steps *steps_due()*, and not one, after a step of the optimizer.

    Each is the number of the batch after which the step counts, because the frequency of a schedule is in batches.
    Schedules that look at a metric stay as they are.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    original = epoch_loop._update_learning_rates

    def update_learning_rates(interval: str, update_plateau_schedulers: bool) -> None:
        if interval != "step" or update_plateau_schedulers:
            original(interval, update_plateau_schedulers)
            return
        progress = epoch_loop.batch_progress.current
        num_ready = progress.ready
        for progress.ready in steps_due():
            original(interval, update_plateau_schedulers)
        progress.ready = num_ready

    epoch_loop.__dict__["_update_learning_rates"] = update_learning_rates


def keep_windows(trainer: Trainer) -> None:
    """Undo :func:`count_windows_from` and :func:`replace_schedule_steps`."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.__dict__.pop("_accumulated_batches_reached", None)
    epoch_loop.__dict__.pop("_update_learning_rates", None)
    epoch_loop.automatic_optimization.__dict__.pop("_make_zero_grad_fn", None)


def fit_loop_state(trainer: Trainer) -> dict[str, Any]:
    """Return the counters of the fit loop as a checkpoint of Lightning has them now, without the loaders."""
    loops = trainer.fit_loop.state_dict()
    loops["state_dict"] = {name: value for name, value in loops["state_dict"].items() if name != "combined_loader"}
    return deepcopy(loops)


def loops_state(trainer: Trainer) -> dict[str, Any]:
    """Return the counters of all loops as a checkpoint of Lightning has them now, without the loaders."""
    others = {name: getattr(trainer, name).state_dict() for name in ("validate_loop", "test_loop", "predict_loop")}
    return {"fit_loop": fit_loop_state(trainer), **others}


def hyper_parameters(owner: Any) -> dict[str, Any]:
    """Return what a checkpoint has about the hyperparameters of a module or data module, or of none."""
    if owner is None or not owner.hparams:
        return {}
    is_plain = not type(owner.hparams).__module__.startswith("omegaconf")
    found = {owner.CHECKPOINT_HYPER_PARAMS_KEY: dict(owner.hparams) if is_plain else owner.hparams}
    if hasattr(owner, "_hparams_name"):
        found[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name
    if not is_plain:
        found[owner.CHECKPOINT_HYPER_PARAMS_TYPE] = type(owner.hparams)
    return found


# ---- logged metrics


def callback_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return the dict that ``trainer.callback_metrics`` returns, without its update from the present collectors."""
    return trainer._logger_connector._callback_metrics


def collectors(trainer: Trainer) -> dict[str, Any]:
    """Return the collectors of values that the module logs in training, by their key."""
    return trainer.fit_loop.epoch_loop._results


def collector_description(collector: Any) -> dict[str, Any]:
    """Return what *collector* is made from, as plain values. The names are part of the stored format."""
    meta = collector.meta
    names = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
    description = {name: getattr(meta, name) for name in (*names, "dataloader_idx", "metric_attribute")}
    description["reduce_fx"] = meta.reduce_fx.__name__
    description["sync"] = meta.sync.should
    description["sync_options"] = {"rank_zero_only": meta.sync.rank_zero_only, "_op": meta.sync.op}
    return description


class _RestoredMetadata(_Metadata):
    """
    Metadata that take over from each call of ``log()`` whether the ranks are synchronized.

    Lightning decides that by the number of ranks, which may have changed since the save. Otherwise it would refuse the
    call, because it differs from the calls before.
    """

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Metadata):
            self.sync = other.sync
        return isinstance(other, _Metadata) and vars(self) == vars(other)


def make_collector(trainer: Trainer, description: dict[str, Any], *, is_tensor: bool) -> Any:
    """Return a new collector that was described by :func:`collector_description`."""
    values = dict(description)
    sync = _Sync(fn=trainer.strategy.reduce, _should=values.pop("sync"), **values.pop("sync_options"))
    metadata = _RestoredMetadata(**values)
    metadata.sync = sync
    return _ResultMetric(metadata, is_tensor=is_tensor)


def set_num_updates(metric: Any, num_updates: int) -> None:
    """Let *metric* believe that it was updated *num_updates* times. Without an update it warns and computes nothing."""
    metric._update_count = num_updates


# ---- attributes


def own_attribute_names() -> set[str]:
    """Return the names of attributes that Lightning and torch keep in a module, a data module or a callback."""
    lightning = {"_hparams", "_hparams_name", "_hparams_initial", "_trainer", "trainer"}
    return {*vars(LightningModule()), *vars(LightningDataModule()), *lightning}


def tensor_version(value: Any) -> int | None:
    """Return a number that grows each time that the tensor *value* is changed in place. None for anything else."""
    return value._version if isinstance(value, torch.Tensor) else None


@contextmanager
def in_hook(pl_module: LightningModule, name: str) -> Iterator[None]:
    """Return the context in which Lightning calls the hook *name*, so that ``self.log`` works in it."""
    before = pl_module._current_fx_name
    pl_module._current_fx_name = name
    try:
        yield
    finally:
        pl_module._current_fx_name = before


# ---- FSDP1, checked against torch 2.13


def is_flat_parameter(name: str) -> bool:
    """Return True if *name* is that of the one parameter that FSDP1 makes of all parameters of a module."""
    return name.endswith("_flat_param")


def _do_nothing(*args: object) -> None:
    """Stand in for a method of Lightning that must not run."""
