"""
The progress of Lightning's loops, restored so that they continue right after the batch at which they were saved.

Lightning infers from its counters where a checkpoint was taken. For one taken in ``on_train_batch_end`` it is wrong:
it leaves out the validation that was due after that batch, and after the last batch of an epoch also the end of the
epoch. So this module first brings the counters to the end of the batch, and then sets explicitly what follows it.
See ``docs/adr/0004``.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from ..program import Program
from ..state import Part
from . import internals
from .position import PositionPart
from .windows import Windows


class LoopsPart:
    """Progress of the fit loop and all loops in it, and the wish to stop."""

    def __init__(self, trainer: Trainer, position: PositionPart, program: Program, *, keep_batch: bool) -> None:
        self._trainer = trainer
        self._program = program
        self._position = position
        self._windows = Windows(trainer, position, program, keep_batch=keep_batch)
        self._others: dict[str, Part] = {}
        self._restored = False

    def add(self, key: str, part: Part) -> None:
        """Save *part* under *key* in the state of this one, unless its state is empty. Older checkpoints have none."""
        self._others[key] = part

    @property
    def is_mid_epoch(self) -> bool:
        """True before :meth:`apply`, if the restored epoch continues after one of its batches."""
        return self._restored and bool(self._trainer.fit_loop.restarted_mid_epoch)

    @property
    def is_ended(self) -> bool:
        """True if the last batch has reached ``max_steps``, or if training was told to stop and may."""
        loop = self._trainer.fit_loop
        is_at_limit = loop.max_steps != -1 and self._trainer.global_step >= loop.max_steps
        return is_at_limit or (self._trainer.should_stop and internals.can_stop(self._trainer))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters. :class:`~.position.PositionPart` saves the positions of loaders."""
        ends = {"limits": limits(self._trainer)} if self._trainer.should_stop else {}
        others = {key: state for key, part in self._others.items() if (state := part.state_dict())}
        return {
            **others,
            **ends,
            "fit_loop": internals.fit_loop_state(self._trainer),
            "should_stop": self._trainer.should_stop,
            **self._windows.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters as they are at the end of the batch."""
        for key, part in self._others.items():
            part.load_state_dict(state.get(key, {}))
        fit_loop = self._trainer.fit_loop
        fit_loop.load_state_dict(state["fit_loop"])
        here = limits(self._trainer)
        if state["should_stop"]:
            self._trainer.should_stop = state.get("limits", here) == here
            what = "training ends at once" if self._trainer.should_stop else "training continues"
            self._program.say(
                f"the training was told to stop before, by EarlyStopping, max_time or the program; {what}. It "
                f"continues if max_epochs, max_steps, max_time, min_epochs, min_steps or the patience changes: {here}"
            )
        self._windows.load_state_dict(state, fit_loop.epoch_loop.batch_progress.current.ready)
        _count_as_done(fit_loop.epoch_loop.batch_progress)
        self._restored = True

    def apply(self) -> None:
        """Set what follows the restored batch. The loaders exist by now, and the epoch continues right after this."""
        if not self._restored:
            return
        self._restored = False
        fit_loop = self._trainer.fit_loop
        if (num_batches := self._position.num_done) is not None:
            _set_all(fit_loop.epoch_loop.batch_progress.current, num_batches)
        self._windows.apply(is_mid_epoch=fit_loop.restarted_mid_epoch)
        if not fit_loop.restarted_mid_epoch:
            # With max_steps Lightning takes every restart for one in an epoch, and leaves out the next epoch.
            internals.end_restart(self._trainer)
            fit_loop.epoch_loop.restarting = False
            return
        # Lightning gives this advice because it knows only loaders that keep their own state.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        internals.forget_earlier_validation(self._trainer)
        internals.keep_logged_values(self._trainer)
        internals.end_restart(self._trainer)
        if internals.validation_is_due(self._trainer):
            internals.validate_next(self._trainer)
        else:
            internals.end_batch(self._trainer)

    def close(self) -> None:
        """Give the trainer its own methods back."""
        self._windows.close()


def limits(trainer: Trainer) -> dict[str, Any]:
    """Return the settings that end a training."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [each for each in callbacks if isinstance(each, Timer) and each.time_remaining() is not None]
    loop = trainer.fit_loop
    return {
        "max_epochs": loop.max_epochs,
        "min_epochs": loop.min_epochs,
        "max_steps": loop.max_steps,
        "min_steps": loop.min_steps,
        "max_time": [internals.duration(timer) for timer in timers],
        "patience": [each.patience for each in callbacks if isinstance(each, EarlyStopping)],
    }


def _set_all(progress: object, num_batches: int) -> None:
    """Set every counter of *progress* to *num_batches*, so that no later batch counts as begun."""
    for name in vars(progress):
        setattr(progress, name, num_batches)


def _count_as_done(progress: Any) -> None:
    """Count the batch of the checkpoint as done, because the checkpoint holds all that the batch changed."""
    for tracker in (progress.total, progress.current):
        tracker.completed = tracker.ready
