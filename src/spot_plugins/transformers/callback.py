"""The callback, which puts the run under a ``Trainer`` and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from ..config import ElasticBatch, EverySeconds, FastForward, NoticeSources, OnNotice, Seconds, from_environment
from ..errors import ConfigError
from ..events import Subscriber
from ..program import subscribers_of
from ..state.part import Part
from . import internals
from .attached import Attached
from .overrides import Overrides


class SpotTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """
    Save on steps or seconds, leave safely when the machine is taken, and resume by itself in ``trainer.train()``.

    Give it to the trainer and call ``train()`` without ``resume_from_checkpoint``::

        trainer = Trainer(model, args, train_dataset=data, callbacks=[SpotTrainerCallback("s3://bucket/run-7")])
        trainer.train()

    If there is a checkpoint at *url*, training continues after it, with the next sample. After a SIGTERM the state is
    saved and stored, and :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves ``train()``. The end of the
    training is stored too, before ``train()`` returns.

    It works under ``Trainer`` and its subclasses that have the same training loop, such as the trainers of TRL. A
    trainer that exists already gets it by :meth:`attach`.

    The log, the evaluation and the trainer's own checkpoint of a step belong to that step. What a notice has cut off
    is done by the next process. The trainer's own checkpoints (``save_steps``) are not needed to resume. Set
    ``save_strategy="no"`` unless you want them for something else, such as ``load_best_model_at_end``.

    A ``resume_from_checkpoint`` is used to begin a run. Once the run has a checkpoint of its own, that one is restored
    instead, and a line says so.

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
        settings: dict[str, Any] = {
            "url": url,
            "every_steps": every_steps,
            "every_seconds": every_seconds,
            "grace_seconds": grace_seconds,
            "on_notice": on_notice,
            "notice_sources": notice_sources,
            "notice_file": notice_file,
            "acknowledge_notice": acknowledge_notice,
            "keep_last": keep_last,
            "keep_every": keep_every,
            "local_dir": local_dir,
            "local_dir_survives": local_dir_survives,
            "buffer_bytes": buffer_bytes,
            "elastic_batch": elastic_batch,
            "fast_forward": fast_forward,
            "compile_cache": compile_cache,
            "storage_options": storage_options,
        }
        config = from_environment(**settings)
        settings["on_event"] = subscribers_of(on_event, hooks)
        if config.elastic_batch != "keep":
            raise ConfigError(
                "elastic_batch='scale' is not supported under a Trainer, whose schedule and max_steps count in steps. "
                "Use 'keep'"
            )
        if config.on_notice != "leave":
            raise ConfigError(
                "on_notice='continue' is not supported under a Trainer, whose ranks make each step together, so that "
                "none can train on after another has left. Use 'leave'"
            )
        self._attached = Attached(self, settings)

    @property
    def last_committed_step(self) -> int | None:
        """
        Newest step that this rank has committed in this process, or None.

        A committed step is visible to a resume once every rank has committed it. The value stays after ``train()``.
        """
        return self._attached.last_committed_step

    @property
    def resumed_from(self) -> int | None:
        """Step after which this process continued, or None on a first run. The value stays after ``train()``."""
        return self._attached.resumed_from

    def attach(self, trainer: Trainer) -> None:
        """
        Put the run under *trainer*. It is not needed if the callback is in ``callbacks=`` of the trainer.

        Raises:
            ConfigError: A trainer has a callback of this kind already, or the callback has a trainer.
        """
        if isinstance(trainer, Overrides) or self._attached.trainer is not None:
            raise ConfigError(
                "one SpotTrainerCallback belongs to one trainer, because a training has one run. Make one per trainer"
            )
        self._attached.trainer = trainer
        if not any(each is self for each in trainer.callback_handler.callbacks):
            trainer.add_callback(self)
        own = type(trainer)
        names: dict[str, Any] = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        names["_attached"] = self._attached
        trainer.__class__ = type(own.__name__, (Overrides, own), names)

    def register(self, name: str, part: Part) -> None:
        """
        Save and restore an object of the program too. Call it before ``train()``.

        Callbacks that are an ``ExportableState``, as ``EarlyStoppingCallback`` is, are saved without it.

        Args:
            name: A word, equal in every process of the run.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
        """
        self._attached.registered.append((name, part))

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the trainer that is made with this callback."""
        if self._attached.trainer is None and (trainer := internals.trainer_under_construction()) is not None:
            self.attach(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore what the training loop has just set to 0. The trackers have begun."""
        part = self._attached.running.part
        part.trackers.begin()
        part.restore_counters()
        control.should_training_stop |= part.place.stops_training

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note that the callbacks have done what they do at the end of an epoch."""
        if (fit := self._attached.fit) is not None:
            fit.part.place.at_epoch_end = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave in the middle of an evaluation, if there is a notice."""
        if (fit := self._attached.fit) is not None:
            fit.hook.check()
