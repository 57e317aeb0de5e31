"""One call of ``trainer.fit``: its session, the parts that it saves, and its steps and pauses."""

from __future__ import annotations

import threading

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..data.internals import has_persistent_iterator
from ..session import Pause, SpotSession
from ..state import ModelPart, RngPart, register_optimizers
from . import facts, internals
from .best import BestFiles
from .loops import LoopsPart
from .metrics import MetricsPart
from .parts import CallbacksPart, CheckpointHooksPart, DeferredPart, FrozenPart
from .position import PositionPart


class Fit:
    """One call of ``trainer.fit``. There is none in ``validate``, ``test`` and ``predict``."""

    def __init__(self, trainer: Trainer, session: SpotSession, url: str, *, keep_batch: bool) -> None:
        """
        Prepare *trainer* before it builds anything.

        Args:
            trainer: The trainer whose ``fit`` was called.
            session: New session of this process.
            url: URL of the run, for warnings.
            keep_batch: Keep the number of batches per optimizer step if the number of ranks changes.
        """
        self.session = session
        self._trainer = trainer
        self._url = url
        # Made now, because configure_optimizers() may ask for the number of steps, which makes the loaders.
        self._position = PositionPart(trainer)
        self._rng = DeferredPart(RngPart())
        self._loops = LoopsPart(trainer, self._position, keep_batch=keep_batch)
        self._best = BestFiles(trainer, session)
        self._last_step = 0
        self._num_batches = 0  # since the last step
        self._pause: Pause | None = None
        self._has_started = False
        internals.stop_sigterm_broadcast(trainer)

    def handle_signals(self) -> None:
        """Take SIGTERM as a notice, if this is the main thread. Lightning may have put its handler before ours."""
        if threading.current_thread() is threading.main_thread():
            self.session.handle_signals()

    def resume(self, pl_module: LightningModule, own: Callback) -> None:
        """Restore everything that exists by now. :meth:`start` restores data and random streams later."""
        trainer = self._trainer
        self._register(pl_module, own)
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
        self._last_step = trainer.global_step
        if step is not None:
            self._best.restore(pl_module)

    def start(self) -> None:
        """Restore the position in the data, the loops, and last of all the random streams."""
        _start_persistent_validation_workers(self._trainer)
        self._has_started = True
        facts.describe_loaders(self.session.program, self._trainer)
        self._position.apply()
        self._loops.apply()
        self._rng.apply()

    def begin_epoch(self) -> None:
        """Keep the best files that were written since the last step."""
        self._best.keep(self._last_step)

    def end_batch(self) -> None:
        """Report the step to the session, if the batch completed one, and begin a pause if validation is next."""
        step = self._trainer.global_step
        self._num_batches += 1
        if step == self._last_step:  # with gradient accumulation several batches have the same step
            return
        self._last_step = step
        num_batches, self._num_batches = self._num_batches, 0
        self.session.after_step(step, position=self._position.numbers(), num_batches=num_batches)
        self._best.keep(step, saves_live=True)
        if self._trainer.is_last_batch:  # at the end of an epoch other callbacks may prune or average weights
            self.session.fence()
        validates = internals.validation_is_due(self._trainer)
        self._best.hold(step, is_last_batch=self._trainer.is_last_batch, validates=validates)
        if validates:
            self._pause = self.session.pause(step)
            self._pause.__enter__()

    def check_pause(self) -> None:
        """Leave if there is a notice and the training stands in a pause."""
        if self._pause is not None:
            self._pause.check()

    def end_pause(self) -> None:
        """End the pause, if there is one. Leave if there is a notice."""
        self._best.keep(self._last_step)
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.__exit__(None, None, None)

    def finish(self) -> None:
        """Save the end of the training and wait until it is stored."""
        self._best.finish(self._trainer.global_step)
        self.end_pause()
        self.session.finish(self._trainer.global_step)

    def tell_if_skipped(self) -> None:
        """Say that nothing was left to train, if the training has ended without a start. An early stop is restored."""
        if not self._has_started and (step := self.session.resumed_from) is not None:
            self.session.program.tell_finished(step)

    def close(self) -> None:
        """Close the session and give the trainer its own methods back."""
        self.session.close()
        self._position.close()
        self._best.close()
        internals.allow_sigterm_broadcast(self._trainer)
        internals.allow_ckpt_path(self._trainer)

    def _register(self, pl_module: LightningModule, own: Callback) -> None:
        trainer, session = self._trainer, self.session
        model = trainer.strategy.model  # FSDP's own wrapper holds the flat parameters
        assert model is not None
        session.register("model", ModelPart(model))
        session.register("frozen", FrozenPart(pl_module))
        # Before the optimizers, because a callback may make groups in one.
        session.register("callbacks", CallbacksPart(trainer, pl_module, own, self._best))
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        register_optimizers(session.register, model, trainer.optimizers, schedulers)
        session.register("precision", trainer.precision_plugin)
        session.register("loops", self._loops)
        session.register("checkpoint-hooks", CheckpointHooksPart(trainer, pl_module, own))
        session.register("metrics", MetricsPart(trainer, pl_module))
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            session.register("datamodule", trainer.datamodule)  # type: ignore[attr-defined]
        session.register("position", self._position)
        session.register("rng", self._rng)


def _start_persistent_validation_workers(trainer: Trainer) -> None:
    """
    Make the iterators of persistent validation workers now, and leave the random streams as they are.

    Making such an iterator draws from torch's stream, once per process. A resumed process would draw
    once more than a training that was never interrupted.
    """
    rng = RngPart()
    state = rng.state_dict()
    for loader in internals.validation_loaders(trainer):
        if (
            isinstance(loader, torch.utils.data.DataLoader)
            and loader.persistent_workers
            and not has_persistent_iterator(loader)
        ):
            iter(loader)
    rng.load_state_dict(state)
