"""The callback, which translates the hooks of Lightning into calls of the session and decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from ..config import ElasticBatch, EverySeconds, FastForward, NoticeSources, OnNotice, Seconds, from_environment
from ..data import end_shielded_workers
from ..errors import ConfigError, Preempted
from ..events import Subscriber
from ..monitor.scalars import Scalars
from ..program import subscribers_of
from ..session import SpotSession
from . import internals
from .fit import Fit
from .guarded import host_of


class SpotCheckpoint(Callback):
    """
    Save on steps or seconds, leave safely when the machine is taken, and resume by itself in ``trainer.fit``.

    Add it to the trainer's callbacks and call ``fit`` without ``ckpt_path``. If there is a checkpoint at *url*,
    training continues after it. After a SIGTERM the state is saved and stored, and
    :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves ``fit``.

    A ``ckpt_path`` is used to begin a run. Once the run has a checkpoint of its own, that one is restored instead,
    with a warning.

    The callback moves itself to the end of the list of callbacks, so that it saves what the others have changed.

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
        fast_forward: After a resume, 'fetch' the batches that were trained on, 'skip' them, or 'auto': skip if exact.
        compile_cache: Keep compiled code at the URL, and load it. Trust all who can write there.
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
        fast_forward: FastForward | None = None,
        compile_cache: bool | None = None,
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
            fast_forward=fast_forward,
            compile_cache=compile_cache,
            storage_options=storage_options,
        )
        self._on_event = subscribers_of(on_event, hooks)
        self._fit: Fit | None = None
        # Of the last fit, after it has ended.
        self._last_committed_step: int | None = None
        self._resumed_from: int | None = None

    @property
    def last_committed_step(self) -> int | None:
        """
        Newest step that this rank has committed in this process, or None.

        A committed step is visible to a resume once every rank has committed it. The value stays after ``fit``.
        """
        fit = self._fit
        return fit.session.last_committed_step if fit is not None else self._last_committed_step

    @property
    def resumed_from(self) -> int | None:
        """Step after which this process continued, or None on a first run. The value stays after ``fit``."""
        fit = self._fit
        return fit.session.resumed_from if fit is not None else self._resumed_from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings against the store before anything is built, and take SIGTERM as a notice."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial of a few batches must not become the beginning of the run
        _check_packages(trainer, pl_module)
        _check_strategy(trainer)
        internals.check(trainer)
        # A new list, because Lightning iterates over the old one during this call.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        if any(isinstance(callback, SpotCheckpoint) for callback in others) or len(others) < len(trainer.callbacks) - 1:  # type: ignore[attr-defined]
            raise ConfigError("callbacks= has more than one SpotCheckpoint. Keep one, because a training has one run")
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        scalars = Scalars()
        session = SpotSession(
            self._config,
            on_event=(*self._on_event, scalars),
            host=host_of(trainer, pl_module, self._held),
        )
        self._fit = Fit(trainer, session, scalars, self._config)
        session.open()
        self._fit.handle_signals()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything that exists by now. :meth:`on_train_start` restores data and random streams."""
        if self._fit is not None:
            self._fit.resume(pl_module, self)
            self._wrap_module_hook(self._fit, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install our SIGTERM handler again, because Lightning has just installed its own around it."""
        if self._fit is not None:
            self._fit.handle_signals()
            self._fit.begin_sanity_check()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the pause of the sanity check. Leave if there is a notice."""
        if self._fit is not None:
            self._fit.end_validation()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore data, loops and, last of all, the random streams, once all hooks of the start have run."""
        if self._fit is not None:
            self._fit.handle_signals()
            self._fit.start(pl_module, self)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best checkpoints that were written at the end of the epoch before."""
        if self._fit is not None:
            self._fit.begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the pause of the validation before, and of the end of the epoch before."""
        if self._fit is not None:
            self._fit.begin_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step, unless the module has a hook of this name, which runs after this one."""
        if self._fit is not None and not _overrides_batch_end(pl_module):
            self._fit.end_batch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave in the middle of validation, if there is a notice."""
        if self._fit is not None:
            self._fit.check_pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave if there is a notice. Otherwise continue training."""
        if self._fit is not None and not trainer.sanity_checking:
            self._fit.end_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave if there is a notice, after the hooks of the other callbacks."""
        if self._fit is not None:
            self._fit.check_pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the training and wait until it is stored."""
        if self._fit is not None:
            self._fit.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close. What is staged is still pushed. Lightning does not call :meth:`teardown` after this."""
        try:
            if self._fit is not None:
                self._fit.session.fail(exception)
        except Preempted as preempted:
            exception = preempted
            raise
        finally:
            self._close(pl_module)
            if isinstance(exception, Preempted):
                end_shielded_workers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close."""
        if self._fit is not None:
            self._fit.end_if_skipped()
        self._close(pl_module)

    def _wrap_module_hook(self, fit: Fit, pl_module: LightningModule) -> None:
        """Report the step after the module's own ``on_train_batch_end``, because the step includes its changes."""
        if not _overrides_batch_end(pl_module):
            return
        original = pl_module.on_train_batch_end

        def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            fit.end_batch()

        pl_module.__dict__["on_train_batch_end"] = on_train_batch_end

    def _held(self) -> Iterable[object]:
        return () if self._fit is None else self._fit.held()

    def _close(self, pl_module: LightningModule) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            pl_module.__dict__.pop("on_train_batch_end", None)
            fit.close()
            self._last_committed_step = fit.session.last_committed_step
            self._resumed_from = fit.session.resumed_from


def _check_packages(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise :exc:`ConfigError` if anything comes from the package ``pytorch_lightning``, which has the same names."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for each in (trainer, pl_module, trainer.datamodule, *callbacks):  # type: ignore[attr-defined]
        if any(base.__module__.partition(".")[0] == "pytorch_lightning" for base in type(each).__mro__):
            raise ConfigError(
                f"{type(each).__name__} comes from the package pytorch_lightning, but SpotCheckpoint is a callback of "
                f"the package lightning. They are two packages whose classes do not know each other. Import all of "
                f"them from lightning.pytorch, for example with `import lightning.pytorch as pl`"
            )


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
