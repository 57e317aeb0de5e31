"""The methods of ``Trainer`` that a training with the callback replaces, as a class that is put before its own."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ..data import shield_workers
from . import internals, loaders
from .attached import Attached
from .fit import Fit


class Overrides(Trainer):  # type: ignore[misc]
    """
    The class before that of a trainer with the callback.

    Each method calls the one of the trainer's own class, so that any subclass works.
    """

    _attached: Attached

    @property
    def _fit(self) -> Fit:
        return self._attached.running

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """Open the run, train, and close it."""
        with self._attached.opened(trial) as fit:
            fit.begin(resume_from_checkpoint)
            return super().train(fit.users_checkpoint, trial, ignore_keys_for_eval)

    def get_train_dataloader(self) -> Any:
        """Make the training loader. Its order can be continued on any number of ranks, unless it is the program's."""
        own = self._attached.fit is None or loaders.has_own_loader(self)
        loader = super().get_train_dataloader() if own else loaders.elastic(self, self._fit.samples_per_step)
        if self._attached.fit is not None:
            self._fit.loader = loader
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Make a loader whose workers a signal to the process group does not reach."""
        loader = super().get_eval_dataloader(eval_dataset)
        shield_workers(loader)
        return loader

    def _init_training_state(
        self,
        max_steps: Any,
        num_update_steps_per_epoch: Any,
        num_train_epochs: Any,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        """Prepare and restore everything now, because the loop begins at the epoch that is returned here."""
        start = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        fit = self._fit
        fit.prepared = super()._prepare_for_training(max_steps, fit.loader, resume_from_checkpoint)
        return fit.resume(num_train_epochs, start)

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Return what :meth:`_init_training_state` has prepared."""
        prepared, self._fit.prepared = self._fit.prepared, None
        return prepared

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Leave the random streams to the hook, unless a checkpoint of the trainer itself is resumed from."""
        if not self._fit.is_resumed:
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, **kwargs: Any) -> None:
        """Train one epoch, or what is left of it, after what the saved step has left to do."""
        fit, epoch = self._fit, kwargs["epoch"]
        kwargs["train_dataloader"] = batches = fit.batches()
        skip = batches.after
        if fit.enter(epoch):
            place, control = fit.part.place, self.control
            control.should_epoch_stop |= place.stops_epoch
            self._catch_up(kwargs)
            stops = control.should_epoch_stop or control.should_training_stop
            done = kwargs["num_update_steps_per_epoch"] if stops else place.updates
            is_whole = stops or done == kwargs["num_update_steps_per_epoch"]
            if place.at_epoch_end and (is_whole or not fit.part.is_longer):
                return
            place.at_epoch_end = False
            steps = done * self.args.gradient_accumulation_steps
            kwargs |= {"epochs_trained": epoch, "steps_trained_in_current_epoch": steps, "resume_from_checkpoint": ""}
            skip = batches.left
        with internals.skipping(lambda loader, number: skip(number)):
            super()._run_epoch(**kwargs)

    def _catch_up(self, kwargs: dict[str, Any]) -> None:
        """Evaluate and save for the saved step, if that was due and not done."""
        names = ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")
        if self._fit.part.place.is_due:
            loss = internals.loss_since_log(self)
            self._maybe_log_save_evaluate(loss, None, **{name: kwargs[name] for name in names})

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: Any,
        ignore_keys_for_eval: Any,
        start_time: Any,
        learning_rate: Any = None,
    ) -> None:
        """Log, report the step, then evaluate and save in a pause, so that a notice need not wait for these."""
        fit, of_eval = self._fit, (model, trial, epoch, ignore_keys_for_eval, start_time)
        grad_norm, learning_rate = fit.logged_with(grad_norm, learning_rate)
        is_due = fit.hold_back()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *of_eval, learning_rate=learning_rate)
        is_due = fit.hold_back() or is_due  # a callback may ask for more when it sees the log
        fit.after_log()
        if is_due:
            fit.best.hold()
            with fit.hook.pause():
                fit.release()
                super()._maybe_log_save_evaluate(tr_loss, grad_norm, *of_eval, learning_rate=learning_rate)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the figures of the run for the trackers. The history stays as it is, because a checkpoint has it."""
        figures = {} if self._attached.fit is None else self._fit.hook.figures()
        logs |= figures
        super().log(logs, *args, **kwargs)
        for name in figures:
            del logs[name]
            self.state.log_history[-1].pop(name, None)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """Evaluate, but evaluate before the first step once per run."""
        if skip_scheduler and self._fit.is_resumed:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """
        Save, and keep the step in the run if it is the best.

        Every rank has a folder before, because the trainer looks for the best checkpoint before all ranks make one.
        """
        if self.is_fsdp_enabled:
            internals.make_checkpoint_folder(self)
        super()._save_checkpoint(model, trial)
        if self._attached.fit is not None:
            self._attached.fit.best.keep()

    def _load_best_model(self) -> None:
        """Load the best weights, under FSDP from the run if some rank does not have their checkpoint."""
        if not self._fit.best.load():
            super()._load_best_model()

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        """Store the last step before the best weights are loaded, because a longer training continues from the last."""
        self._fit.hook.finish()
        return super()._finalize_training(trial, num_train_samples, start_time)
