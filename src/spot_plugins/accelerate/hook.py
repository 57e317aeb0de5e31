"""The hook, which translates calls of a training loop into calls of the session and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from ..config import ElasticBatch, EverySeconds, NoticeSources, OnNotice, Seconds, from_environment
from ..errors import ConfigError
from ..events import Subscriber, subscribers_of
from ..monitor.scalars import Scalars
from ..session import SpotSession
from ..state.part import Part
from . import facts, internals
from .batches import Batches
from .epochs import StreamsPart
from .guarded import REMEDIES, host_of
from .one_hook import claim, open_session, release
from .peek import Peek
from .position import PositionPart
from .prepared import NamedPart, Prepared, check_supported
from .progress import Progress
from .steps import Steps, workers_end_first
from .told import Told


class SpotHook:
    """
    Save on steps or seconds, leave safely when the machine is taken, and continue where the loop was.

    A loop that uses everything::

        with SpotHook(accelerator, "s3://bucket/run-7", every_steps=100) as spot:
            model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
            progress = spot.resume()
            for epoch in spot.epochs(num_epochs):
                for batch in spot.batches(loader):
                    with accelerator.accumulate(model):
                        ...
                    spot.after_step()
                with spot.pause():
                    for batch in validation_loader:
                        spot.check()
                        ...

    After a SIGTERM the state is saved and stored, and :exc:`~spot_plugins.errors.Preempted` (exit code 143) leaves
    the block. Leaving the block at its end saves the end of the training and waits until it is stored.

    A step is one in which an optimizer stepped, also if the scaler left out the update because of an overflow.
    Nothing is saved within gradient accumulation.

    A resumed program runs its loop again from the head of the epoch, with the batches that are left. Code that
    follows :meth:`after_step` in the body is not repeated for the saved step. Code that follows the last batch of an
    epoch is repeated, if the saved step is the last one of that epoch. Every loader yields the same samples in the
    same order, but random numbers drawn *within* a data set are the same only with
    :func:`spot_plugins.data.elastic_loader`.

    Every rank makes one. A ``SPOT_*`` variable stands for each setting that is None: ``SPOT_EVERY_STEPS`` for
    *every_steps*, and so on for all but *storage_options*. :class:`~spot_plugins.config.SpotConfig` says more of each.

    Args:
        accelerator: The accelerator that will prepare model, optimizer, scheduler and loaders.
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
        StoreError: The store does not answer.
    """

    _remedies: Mapping[Any, str] = REMEDIES

    def __init__(
        self,
        accelerator: Accelerator,
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
        internals.check(accelerator)
        check_supported(accelerator)
        config = from_environment(
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
        self._accelerator = accelerator
        self._keep_batch = config.elastic_batch == "keep"
        self._registered: list[Any] = []
        self._told = Told()
        self._streams = StreamsPart()
        self._position = PositionPart(accelerator, self._streams, lambda: self._steps.are_done)
        host = host_of(accelerator, self._position, self._told, self._remedies)
        self._scalars = Scalars()
        self._session = SpotSession(config, on_event=(*subscribers_of(on_event, hooks), self._scalars), host=host)
        self._steps = Steps(accelerator, self._session, self._told, self._scalars)
        self._prepared: Prepared | None = None  # None: not resumed yet
        self._peek = Peek(self._session)

    def __enter__(self) -> SpotHook:
        """
        Join the run, start the pusher, and take SIGTERM as a notice if this is the main thread.

        Raises:
            ConfigError: Another hook, session or callback of this process is open.
        """
        claim(self)
        try:
            open_session(self._session)
        except BaseException:
            release(self)
            self._session.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Save the end of the training and wait until it is stored. After an error, close."""
        try:
            if exc is not None:
                with workers_end_first():
                    self._session.fail(exc)
            elif self._prepared is not None:
                self._steps.finish()
        finally:
            release(self)
            self._steps.guard.close()
            self._session.close()

    @property
    def progress(self) -> Progress:
        """Steps, epochs and batches that the training has done."""
        return Progress(
            step=self._steps.number,
            epoch=self._position.epochs.present,
            batches=self._position.num_batches,
            resumed=self._session.resumed_from is not None,
        )

    @property
    def last_committed_step(self) -> int | None:
        """
        Newest step that this rank has committed in this process, or None.

        A committed step is visible to a resume once every rank has committed it.
        """
        return self._session.last_committed_step

    @property
    def resumed_from(self) -> int | None:
        """Step after which this process continued. None on a first run and before :meth:`resume`."""
        return self._session.resumed_from

    def register(self, name: str, part: Part) -> None:
        """
        Save and restore an object of the user too. Call it before :meth:`resume`.

        Objects given to ``accelerator.prepare`` or ``accelerator.register_for_checkpointing`` are saved without it.

        Args:
            name: A word, equal in every process of the run.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
        """
        self._session.register(name, part)
        self._registered.append(part)

    def peek(self) -> Progress:
        """
        Return the progress from which :meth:`resume` will continue, before anything is prepared. Loads no state.

        Call it on every rank, for example to build a model that has grown during the run. ``batches`` is 0, because
        their number depends on the loader.

        Returns:
            ``Progress(step=0, epoch=0, batches=0, resumed=False)`` on a first run.

        Raises:
            NothingToResumeError, IncompatibleCheckpointError, StoreError: See
                :meth:`spot_plugins.session.SpotSession.peek`.
        """
        return self._peek.progress()

    def resume(self) -> Progress:
        """
        Continue from the newest committed step, if there is one. Call it after ``prepare``, once, on every rank.

        Schedulers of torch that are bound to prepared optimizers are restored too, even if they are not prepared.

        Returns:
            The progress of the training, ``Progress(step=0, epoch=0, batches=0, resumed=False)`` on a first run.

        Raises:
            ConfigError: Nothing is prepared, or something that is trained would not be saved.
            NothingToResumeError, IncompatibleCheckpointError, StoreError, UnsafeStateError: See
                :meth:`spot_plugins.session.SpotSession.resume`.
        """
        if self._prepared is not None:
            raise RuntimeError("resume() was called already")
        say, keep_batch = self._session.program.say, self._keep_batch
        prepared = Prepared(self._accelerator, self._registered, self._told, say, keep_batch=keep_batch)
        parts = [*prepared.parts(), NamedPart("position", self._position), NamedPart("rng", self._streams)]
        self._position.adopt_loaders()
        for named in parts:
            self._session.register(named.name, named.part)
        facts.describe(self._session.program, self._accelerator)
        self._session.program.epoch = lambda: self._position.epochs.present
        step = self._session.resume() or 0
        self._peek.compare(step)
        prepared.resume(step)
        self._steps.open(step, self._registered, self._position)
        self._prepared = prepared
        return self.progress

    def epochs(self, num_epochs: int | None = None, *, max_steps: int | None = None) -> Iterator[int]:
        """
        Yield the epochs that are not done yet, counted from 0.

        The epoch of the saved step comes again, even if all of its batches are done, because the program's own code
        after the batches may not have run.

        Args:
            num_epochs: Epochs of the whole training. None: as many as *max_steps* takes.
            max_steps: Optimizer steps of the whole training. After the last one :meth:`batches` yields no more, and
                this epoch is the last one. A finished training that is started again trains no further step.

        Raises:
            ConfigError: Neither of the two is given.
        """
        self._check_resumed()
        if num_epochs is None and max_steps is None:
            raise ConfigError("num_epochs=None and max_steps=None: the training would never end. Give one of them")
        self._steps.last = max_steps
        return self._position.epochs.left(num_epochs)

    def batches(self, loader: Any, *, limit: int | None = None, repeat: bool = False) -> Batches:
        """
        Yield the batches of *loader* in the present epoch. After a resume, yield those that were not trained on.

        ``len()`` of the result is the number of batches that it yields. Its ``start`` is the number of those that were
        done before, so that ``enumerate(batches, batches.start)`` counts from the head of the epoch.

        To leave the loop early by ``break``, look at :attr:`progress` at the head of the body, because the foot is not
        repeated for a saved step. The rest of a loader that was left does not come again in this epoch.

        Args:
            loader: A loader that ``accelerator.prepare`` returned. Each loader has its own position and may be
                iterated once per epoch.
            limit: Most batches of an epoch, counted from its head, also after a resume.
            repeat: Begin again after the last batch, without an end. The position of such a loader does not depend on
                the epochs: each call continues where the loop before has stopped.

        Raises:
            ConfigError: *loader* is not prepared, or something was prepared too late to be restored.
            RuntimeError: The calls are out of order.
        """
        prepared = self._check_resumed()
        prepared.check_none_is_late()
        return self._position.batches(loader, self._steps.guard, self._session.fence, limit=limit, repeat=repeat)

    def after_step(self, *, stepped: bool | None = None) -> None:
        """
        End a batch. Call it after ``optimizer.step()``, ``scheduler.step()`` and all that belongs to the batch.

        With gradient accumulation, by Accelerate or by hand, call it for every batch. It does nothing until an
        optimizer has stepped. Call it once per batch, also if several optimizers step, or one of them several times.

        Args:
            stepped: True if the batch has made a step that torch does not know of, for example in a CUDA graph. False
                if gradients of this batch wait for a step, while another optimizer has stepped. None: find out.

        Raises:
            Preempted: There was a notice, and the state is stored or the time is up.
            UnsafeStateError: Some state has no pickle-free form.
        """
        prepared = self._check_resumed()
        prepared.end_batch()
        self._steps.end_batch(stepped)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """
        Pause the training after a step, for example to validate. :meth:`check` can leave from within.

        Enter it right after :meth:`after_step`, after the last batch of an epoch, or at the head of the loop's body.
        The state is staged first, so that a notice has nothing left to copy. Random numbers within the pause come
        from a copy of the streams, also those that making an iterator draws. So the training continues the same,
        whether the pause was completed or not.

        If the program leaves from a pause after the last batch of an epoch, or at the head of the body, the resumed
        program repeats the pause. It does not repeat a pause that follows :meth:`after_step` in the body. If the
        training depends on the result of the pause, write it at the head of the body.

        Raises:
            Preempted: There was a notice. As :meth:`after_step`, also at the end of the pause.
        """
        self._check_resumed()
        with self._steps.pause():
            yield

    def check(self) -> None:
        """
        Leave if there is a notice. Call it within :meth:`pause`, as often as convenient; elsewhere it does nothing.

        Raises:
            Preempted: As :meth:`after_step`.
        """
        self._steps.check_pause()

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps that :meth:`keep` has kept, those of earlier processes included, in order. Empty before the resume."""
        return self._session.kept

    def keep(self, step: int | None = None) -> None:
        """
        Keep a step in the store until :meth:`release`, whatever ``keep_last`` says. Call it on every rank.

        For the best step by validation, call it in :meth:`pause` or right after it. If the present step is not saved,
        it is saved now, with the state from the beginning of the pause. Later processes keep the step as well.
        :func:`spot_plugins.load_weights` reads the weights of a kept step.

        Training does not end because of this call. If the step cannot be kept, the event
        :class:`~spot_plugins.events.KeepFailed` and a warning say so.

        Args:
            step: The present step or an earlier one that is in the store. None: the present step.

        Raises:
            ValueError: *step* is not trained yet.
            RuntimeError: No step is done yet, or :meth:`resume` was not called.
        """
        self._check_resumed()
        self._steps.keep(step)

    def release(self, step: int) -> None:
        """Let a kept step be pruned like any other. Call it on every rank. It does nothing if *step* is not kept."""
        self._check_resumed()
        self._session.release(step)

    def fence(self, *, copied: bool = False) -> None:
        """
        Wait until no save depends on live state any more, and with *copied* until no copy runs on a device either.

        Call it before weights or optimizer state are changed by anything but the step of an optimizer, such as the
        clipping of weights, or a swap for averaged ones. A pause and the end of a loop over :meth:`batches` include it.
        Call it with *copied* before a CUDA graph is captured. During the capture it raises a RuntimeError.
        """
        self._session.fence(copied=copied)

    def _check_resumed(self) -> Prepared:
        if self._prepared is None:
            raise RuntimeError("call spot.resume() first, after accelerator.prepare()")
        return self._prepared
