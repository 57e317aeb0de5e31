"""
Lightning's loops, restored such that they go on behind the very batch at which they were saved.

Lightning guesses from its counters where a checkpoint was taken, and guesses wrong for one taken in
``on_train_batch_end``: it leaves out the validation that was due behind that batch, and behind the last batch of
an epoch the end of the epoch too. So the counters are brought to the end of the batch first, and what follows it
is set explicitly. Everything private of Lightning's loops is in this module; ``tests/drills`` pin it.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.evaluation_loop import RestartStage as EvaluationRestart
from lightning.pytorch.loops.progress import _BatchProgress, _ReadyCompletedTracker
from lightning.pytorch.utilities import rank_zero_info

from .position import PositionPart


def validation_is_due(trainer: Trainer) -> bool:
    """Whether validation follows the batch that has just been trained on."""
    fit_loop = trainer.fit_loop
    assert fit_loop._data_fetcher is not None
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


class LoopsPart:
    """Progress of the fit loop and all loops in it, and whether it was asked to stop."""

    def __init__(self, trainer: Trainer, position: PositionPart, *, keep_batch: bool) -> None:
        self._trainer = trainer
        self._position = position
        self._keep_batch = keep_batch
        self._restored = False
        self._accumulate_grad_batches = 1
        self._configured = trainer.accumulate_grad_batches
        self._batches_per_step: int | None = None  # over all ranks, of the first life with this setting

    def state_dict(self) -> dict[str, Any]:
        """Return the counters. Positions of loaders are left to :class:`~.position.PositionPart`."""
        loops = self._trainer.fit_loop.state_dict()
        loops["state_dict"] = {k: v for k, v in loops["state_dict"].items() if k != "combined_loader"}
        return {
            "fit_loop": loops,
            "should_stop": self._trainer.should_stop,
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "configured": self._configured,
            "batches_per_step": self._batches_per_step or self._configured * self._position.num_replicas,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters, as of the end of the batch."""
        fit_loop = self._trainer.fit_loop
        fit_loop.load_state_dict(state["fit_loop"])
        self._trainer.should_stop = state["should_stop"]
        self._accumulate_grad_batches = state["accumulate_grad_batches"]
        if state["configured"] == self._configured:
            self._batches_per_step = state["batches_per_step"]
        _complete(fit_loop.epoch_loop.batch_progress)
        self._restored = True

    def settle(self) -> None:
        """Say what follows the restored batch, once the data is there, right before the epoch goes on."""
        if not self._restored:
            return
        self._restored = False
        fit_loop = self._trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        if (batches := self._position.batches_behind) is not None:
            _go_to(epoch_loop.batch_progress.current, batches)
        self._keep_batches_per_step()
        if not fit_loop.restarted_mid_epoch:
            return
        # Lightning knows only of loaders that keep their own state.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        if self._has_accumulation_schedule:
            # It says so at the beginning of an epoch, and refuses to start with anything but 1.
            self._trainer.accumulate_grad_batches = self._accumulate_grad_batches
        # Not the first batch of the epoch, at which what was logged before is dropped.
        self._trainer._logger_connector._first_loop_iter = True
        # Lightning leaves out plateau schedulers at the end of a restarted epoch, because it does not restore
        # the metrics they look at. We do.
        fit_loop._restarting = False
        if validation_is_due(self._trainer):
            epoch_loop.val_loop.batch_progress.reset_on_run()  # it counts the validation before
            epoch_loop.val_loop._restart_stage = EvaluationRestart.RESTARTED_MID_EVALUATION
        else:  # the rest of what ends a batch; with validation it runs by itself behind that
            epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
            epoch_loop._batches_that_stepped += 1

    def _keep_batches_per_step(self) -> None:
        """Let the ranks there are now take as many batches per optimizer step as the first ones did."""
        num_replicas = self._position.num_replicas
        here = self._configured * num_replicas
        before = self._batches_per_step or here
        if not self._keep_batch or before == here:
            return
        if self._has_accumulation_schedule:
            obstacle = "a GradientAccumulationScheduler decides"
        elif not self._trainer.lightning_module.automatic_optimization:
            obstacle = "the module optimizes by hand"
        elif before % num_replicas:
            obstacle = f"{before} do not divide over {num_replicas} ranks"
        else:
            self._trainer.accumulate_grad_batches = before // num_replicas
            rank_zero_info(
                f"accumulate_grad_batches={before // num_replicas} on {num_replicas} ranks: an optimizer step is made "
                f"of {before} batches, as before"
            )
            return
        warnings.warn(f"an optimizer step is made of {here} batches now instead of {before}: {obstacle}", stacklevel=2)

    @property
    def _has_accumulation_schedule(self) -> bool:
        callbacks = self._trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)


def _go_to(progress: _ReadyCompletedTracker, batches: int) -> None:
    """Count *batches* as done, and nothing behind them as begun."""
    for name in vars(progress):
        setattr(progress, name, batches)


def _complete(progress: _BatchProgress) -> None:
    """Count the batch that was in hand as done: the checkpoint holds all that it changed."""
    for tracker in (progress.total, progress.current):
        tracker.completed = tracker.ready
