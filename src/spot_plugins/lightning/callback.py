"""The callback itself: it translates hooks into calls of the session and decides nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from ..config import ElasticBatch, EverySeconds, NoticeSources, OnNotice, Seconds, from_environment
from ..data import end_shielded_workers
from ..errors import ConfigError, Preempted
from ..events import Subscriber, subscribers_of
from ..session import SpotSession
from ..state import ModelPart, OptimizerPart, RngPart
from .loops import LoopsPart, validation_is_due
from .metrics import MetricsPart
from .parts import CallbacksPart, CheckpointHooksPart, DeferredPart, FrozenPart
from .position import PositionPart


class SpotCheckpoint(Callback):
    """
    Save on steps or seconds, leave safely when the machine is taken, and resume by itself in ``trainer.fit``.

    Add it to the trainer's callbacks and call ``fit`` without ``ckpt_path``: when there is a checkpoint at *url*,
    training goes on behind it. After a SIGTERM the state is saved and stored, and
    :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves ``fit``.

    It moves itself behind all other callbacks, so that what it saves is what they have left.

    A ``SPOT_*`` variable stands for each setting that is None: ``SPOT_EVERY_STEPS`` for *every_steps*, and so on for
    all but *storage_options*. See :class:`~spot_plugins.config.SpotConfig` for more about each, and for the defaults.

    Args:
        url: URL of the run, such as s3://bucket/run-7 or file:///data/run-7. One run per URL.
        every_steps: Optimizer steps between saves. None: not by steps.
        every_seconds: Seconds between saves, or a timedelta. 'auto': the interval that wastes least. None: not by time.
        grace_seconds: Seconds, or a timedelta, from a SIGTERM until the machine is gone.
        on_notice: Once all ranks have saved: 'leave' on all of them, or 'continue' on those without a notice.
        notice_sources: Services to ask for notices: aws, gcp, azure, slurm. 'auto': those that are found. Empty: none.
        notice_file: File whose appearance is a notice, or an http:// URL. None: no file.
        acknowledge_notice: Let the provider take the machine as soon as all is saved. Azure only.
        keep_last: Committed checkpoints to keep, counted from the newest.
        keep_every: Keep each checkpoint whose step is a multiple of this as well. None: no others.
        local_dir: Directory on a fast local disk for a first copy. None: one in the temporary directory.
        local_dir_survives: True if the next attempt finds the local disk again. A last save there then counts.
        buffer_bytes: Most bytes of host memory per rank for state on its way to the store. None: room for two states.
        elastic_batch: On another number of ranks: 'keep' the samples per step, or let them 'scale' with the ranks.
        storage_options: Options of the fsspec file system, such as {'endpoint_url': ...}. Never printed.
        on_event: Function that is called with every event of this rank, or a list of such functions.
        hooks: Old name of on_event, accepted until 1.0.

    Raises:
        ConfigError: A setting is missing or cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        every_steps: int | None = None,
        every_seconds: EverySeconds | None = None,
        grace_seconds: Seconds | None = None,
        on_notice: OnNotice | None = None,
        notice_sources: NoticeSources | None = None,
        notice_file: str | None = None,
        acknowledge_notice: bool | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        local_dir: str | None = None,
        local_dir_survives: bool | None = None,
        buffer_bytes: int | None = None,
        elastic_batch: ElasticBatch | None = None,
        storage_options: Mapping[str, Any] | None = None,
        on_event: Subscriber | Sequence[Subscriber] = (),
        hooks: Sequence[Subscriber] | None = None,
    ) -> None:
        self._config = from_environment(
            url=url,
            every_steps=every_steps,
            every_seconds=every_seconds,
            grace_seconds=grace_seconds,
            on_notice=on_notice,
            notice_sources=notice_sources,
            notice_file=notice_file,
            acknowledge_notice=acknowledge_notice,
            keep_last=keep_last,
            keep_every=keep_every,
            local_dir=local_dir,
            local_dir_survives=local_dir_survives,
            buffer_bytes=buffer_bytes,
            elastic_batch=elastic_batch,
            storage_options=storage_options,
        )
        self._on_event = subscribers_of(on_event, hooks)
        self._fit: _Fit | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings against the store, before anything is built, and take SIGTERM."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial of a few batches must not become the beginning of the run
        _check_strategy(trainer)
        # A new list: Lightning is iterating over the old one right now.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        session = SpotSession(self._config, on_event=self._on_event)
        # Now: configure_optimizers() may ask how many steps there will be, and that makes the loaders.
        position = PositionPart(trainer)
        rng = DeferredPart(RngPart())
        loops = LoopsPart(trainer, position, keep_batch=self._config.elastic_batch == "keep")
        self._fit = _Fit(session, loops, position, rng)
        self._watch_signals()
        # Lightning's own handler broadcasts: a rank that gets the signal alone hangs or crashes in it. No hook comes
        # between the moment that it is put in front of ours and a barrier in which that rank may wait for long.
        trainer._signal_connector.__dict__["_sigterm_notifier_fn"] = _leave_it_to_us

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything that exists by now; data and random streams follow in :meth:`on_train_start`."""
        if (fit := self._fit) is None:
            return
        session = fit.session
        model = trainer.strategy.model  # FSDP's own wrapper holds what it has flattened
        assert model is not None
        session.register("model", ModelPart(model), replicated=ModelPart.replicated)
        session.register("frozen", FrozenPart(pl_module))
        session.register("callbacks", CallbacksPart(trainer, pl_module, self))  # they may make groups in an optimizer
        for index, optimizer in enumerate(trainer.optimizers):
            part = OptimizerPart(optimizer, model)
            session.register(f"optimizer-{index}", part, replicated=OptimizerPart.replicated)
        for index, config in enumerate(trainer.lr_scheduler_configs):
            session.register(f"scheduler-{index}", config.scheduler)
        session.register("precision", trainer.precision_plugin)
        session.register("loops", fit.loops)
        session.register("checkpoint-hooks", CheckpointHooksPart(trainer, pl_module, self))
        session.register("metrics", MetricsPart(trainer, pl_module))
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            session.register("datamodule", trainer.datamodule)  # type: ignore[attr-defined]
        session.register("position", fit.position)
        session.register("rng", fit.rng)
        if session.resume() is not None:
            # What a ckpt_path brought is older: it was where the first run began.
            trainer._checkpoint_connector._loaded_checkpoint = {}
        fit.last_step = trainer.global_step
        self._wrap_module_hook(trainer, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back: Lightning has just put a handler of its own around ours."""
        self._watch_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put data, loops and, last of all, the random streams where they were."""
        if (fit := self._fit) is None:
            return
        self._watch_signals()
        _start_persistent_validation_workers(trainer)
        fit.position.settle()
        fit.loops.settle()
        fit.rng.settle()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's position before its iterator is made."""
        if self._fit is not None:
            self._fit.position.begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave the pause, should validation have run without a batch."""
        self._exit_pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step, unless the module's own hook of this name is still to come."""
        if not _overrides_batch_end(pl_module):
            self._boundary(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave from within validation, if there is a notice."""
        if self._fit is not None and self._fit.paused:
            self._fit.session.in_pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, or go on training."""
        self._exit_pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the training and wait until it is stored."""
        if self._fit is not None:
            self._exit_pause()
            self._fit.session.finish(trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go; what is staged is still pushed. Lightning does not call :meth:`teardown` now."""
        try:
            if self._fit is not None:
                self._fit.session.fail(exception)
        except Preempted as preempted:
            exception = preempted
            raise
        finally:
            self._close(trainer, pl_module)
            if isinstance(exception, Preempted):
                end_shielded_workers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go."""
        self._close(trainer, pl_module)

    def _boundary(self, trainer: Trainer) -> None:
        fit, step = self._fit, trainer.global_step
        if fit is None or step == fit.last_step:  # under gradient accumulation the step repeats from batch to batch
            return
        fit.last_step = step
        fit.session.after_step(step)
        if trainer.is_last_batch:  # at the end of an epoch other callbacks may prune weights, or average them
            fit.session.fence()
        if validation_is_due(trainer):
            fit.paused = True
            fit.session.enter_pause(step)

    def _exit_pause(self) -> None:
        if self._fit is not None and self._fit.paused:
            self._fit.paused = False
            self._fit.session.exit_pause()

    def _wrap_module_hook(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Callbacks run before the module's own ``on_train_batch_end``: what that changes belongs to the step."""
        if not _overrides_batch_end(pl_module):
            return
        original = pl_module.on_train_batch_end

        def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self._boundary(trainer)

        pl_module.__dict__["on_train_batch_end"] = on_train_batch_end

    def _close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            fit.session.close()
            fit.position.close()
            pl_module.__dict__.pop("on_train_batch_end", None)
            trainer._signal_connector.__dict__.pop("_sigterm_notifier_fn", None)

    def _watch_signals(self) -> None:
        if self._fit is not None and threading.current_thread() is threading.main_thread():
            self._fit.session.watch_signals()


@dataclass
class _Fit:
    """What belongs to one call of ``trainer.fit``. There is none in ``validate`` and the like."""

    session: SpotSession
    loops: LoopsPart
    position: PositionPart
    rng: DeferredPart
    last_step: int = 0
    paused: bool = False


def _leave_it_to_us(*args: Any) -> None:
    """Stand in for the part of Lightning's handler that broadcasts; it calls ours next."""


def _check_strategy(trainer: Trainer) -> None:
    strategy = trainer.strategy
    supported = isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy | ModelParallelStrategy)
    if not supported or isinstance(strategy, DeepSpeedStrategy):
        raise ConfigError(
            f"strategy={type(strategy).__name__} keeps its state where it cannot be saved from. Use one device, 'ddp', "
            f"'fsdp', or ModelParallelStrategy (FSDP2, tensor parallelism)"
        )


def _overrides_batch_end(pl_module: LightningModule) -> bool:
    return type(pl_module).on_train_batch_end is not LightningModule.on_train_batch_end


def _start_persistent_validation_workers(trainer: Trainer) -> None:
    """
    Make the iterators of persistent validation workers now, with the random streams as they were.

    Making one draws from torch's stream, once per process life. In a resumed life that would be one draw more
    than in a life that was never interrupted.
    """
    loaders = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    rng = RngPart()
    state = rng.state_dict()
    for loader in loaders.flattened if loaders is not None else ():
        if isinstance(loader, torch.utils.data.DataLoader) and loader.persistent_workers and loader._iterator is None:
            iter(loader)
    rng.load_state_dict(state)
