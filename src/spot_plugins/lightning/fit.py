"""One call of ``trainer.fit``: its session, the parts that it saves, and its steps and pauses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..config import SpotConfig
from ..data.internals import has_persistent_iterator
from ..monitor.scalars import Scalars
from ..session import SpotSession
from ..state import RngPart
from . import facts, internals, loader_internals
from .best import BestFiles
from .epoch_start import call_epoch_start_hooks
from .fit_parts import FitParts
from .pauses import Pauses
from .steps import Steps


class Fit:
    """One call of ``trainer.fit``. There is none in ``validate``, ``test`` and ``predict``."""

    def __init__(self, trainer: Trainer, session: SpotSession, scalars: Scalars, config: SpotConfig) -> None:
        """
        Prepare *trainer* before it builds anything.

        Args:
            trainer: The trainer whose ``fit`` was called.
            session: New session of this process.
            scalars: Figures of the run for the loggers of the trainer, which watch the session.
            config: Settings of the run.
        """
        self.session = session
        self._trainer = trainer
        self._scalars = scalars
        self._url = config.url
        self._best = BestFiles(trainer, session)
        self._num_batches = 0  # since the last step
        self._has_started = False
        self._steps = Steps(trainer)
        self._parts = FitParts(trainer, session, self._best, self._steps, config)
        self._pauses = Pauses(trainer, session, self._steps)
        internals.stop_sigterm_broadcast(trainer)

    def handle_signals(self) -> None:
        """Take SIGTERM as a notice, if this is the main thread. Lightning may have put its handler before ours."""
        if threading.current_thread() is threading.main_thread():
            self.session.handle_signals()

    def resume(self, pl_module: LightningModule, own: Callback) -> None:
        """Restore everything that exists by now. :meth:`start` restores data and random streams later."""
        trainer = self._trainer
        self._parts.register(pl_module, own)
        facts.describe(self.session.program, trainer, pl_module)
        step = self.session.resume()
        facts.tell_if_finished(self.session.program, trainer, step)
        if step is not None:

            def warn(ckpt_path: str) -> None:
                rank_zero_warn(
                    f"ckpt_path={ckpt_path!r} is not used: the run at {self._url} has a checkpoint of its own, and "
                    f"training continues after its step {step}. To begin from ckpt_path, choose a new URL"
                )

            internals.ignore_ckpt_path(trainer, warn)
        self._steps.begin(step)
        if step is not None:
            self._best.restore(pl_module)

    def start(self, pl_module: LightningModule, own: Callback) -> None:
        """
        Restore the position in the data, the loops, and last of all the random streams, right before the first batch.

        All hooks that a new process calls are called before that. If the epoch continues after one of its batches,
        these are also the hooks of the beginning of an epoch, which Lightning leaves out. What they change in saved
        state is undone.
        """
        _start_persistent_validation_workers(self._trainer)
        self._has_started = True
        facts.describe_loaders(self.session.program, self._trainer)

        def begin(begin_epoch: Callable[[], None]) -> None:
            is_mid_epoch = self._parts.loops.is_mid_epoch
            if is_mid_epoch:
                begin_epoch()
            self._parts.attributes.mark()
            if is_mid_epoch:
                # Lightning makes the iterators of the first epoch before these hooks, and those of a later one after.
                if self._trainer.current_epoch == 0:
                    self._parts.position.apply()
                call_epoch_start_hooks(self._trainer, pl_module, own)
            self._parts.restore_again()
            if not is_mid_epoch:
                begin_epoch()

        internals.replace_first_epoch_start(self._trainer, begin)

    def begin_epoch(self) -> None:
        """Keep the best files that were written since the last step."""
        self._best.keep(self._steps.number)

    def begin_sanity_check(self) -> None:
        """Begin the pause of the validation before the training."""
        self._pauses.begin_sanity_check()

    def begin_batch(self) -> None:
        """End the pause, unless it lasts until the next step."""
        self._best.keep(self._steps.number)
        self._pauses.begin_batch()

    def end_batch(self) -> None:
        """Report the step to the session, if the batch completed one, and begin a pause if validation is next."""
        self._num_batches += 1
        if not self._steps.end_batch():  # with gradient accumulation several batches have the same step
            return
        self._pauses.end()
        step = self._steps.number
        num_batches, self._num_batches = self._num_batches, 0
        self.session.after_step(step, position=self._parts.position.numbers(), num_batches=num_batches)
        self._scalars.write(self._log)
        self._best.keep(step, saves_live=True)
        is_last_batch = self._trainer.is_last_batch
        if is_last_batch:  # at the end of an epoch other callbacks may prune or average weights
            self.session.fence()
        if self._parts.loops.is_ended and not is_last_batch:
            # A longer training continues in the middle of this epoch, so the end of this one must not be all there is.
            self.session.save(step)
        self._best.hold(step, is_last_batch=is_last_batch, validates=internals.validation_is_due(self._trainer))
        self._pauses.begin_after_step()

    def check_pause(self) -> None:
        """Leave if there is a notice and the training stands in a pause."""
        self._pauses.check()

    def end_validation(self) -> None:
        """End the pause, unless it lasts longer than the validation. Leave if there is a notice."""
        self._best.keep(self._steps.number)
        self._pauses.end_validation()

    def finish(self) -> None:
        """Save the end of the training and wait until it is stored."""
        self._best.finish(self._steps.number)
        self._pauses.end()
        self.session.finish(self._steps.number)
        self._scalars.write(self._log)

    def _log(self, values: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(values, step)

    def held(self) -> Iterable[object]:
        """Return the objects in attributes that are saved as soon as they change."""
        return self._parts.attributes.held()

    def end_if_skipped(self) -> None:
        """Restore the random streams and say that nothing was left to train, if the training ends without a start."""
        if not self._has_started and (step := self.session.resumed_from) is not None:
            self._parts.restore_streams()
            self.session.program.tell_finished(step)

    def close(self) -> None:
        """Close the session and give the trainer its own methods back."""
        try:
            self.session.close()
        finally:
            self._steps.close()
            self._parts.position.close()
            self._parts.loops.close()
            self._best.close()
            internals.keep_first_epoch_start(self._trainer)
            internals.allow_sigterm_broadcast(self._trainer)
            internals.allow_ckpt_path(self._trainer)


def _start_persistent_validation_workers(trainer: Trainer) -> None:
    """
    Make the iterators of persistent validation workers now, and leave the random streams as they are.

    Making such an iterator draws from torch's stream, once per process. A resumed process would draw
    once more than a training that was never interrupted.
    """
    rng = RngPart()
    state = rng.state_dict()
    for loader in loader_internals.validation_loaders(trainer):
        if (
            isinstance(loader, torch.utils.data.DataLoader)
            and loader.persistent_workers
            and not has_persistent_iterator(loader)
        ):
            iter(loader)
    rng.load_state_dict(state)
