"""The hook itself: it translates what a training loop says into calls of the session and decides nothing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from ..config import ElasticBatch, EverySeconds, NoticeSources, OnNotice, Seconds, from_environment
from ..data import end_shielded_workers
from ..errors import ConfigError, Preempted
from ..events import Subscriber, subscribers_of
from ..session import SpotSession
from ..state import RngPart
from ..state.part import Part
from .position import PositionPart, StreamsPart
from .prepared import NamedPart, check_supported, num_prepared, prepared_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the training is."""

    step: int
    """Optimizer steps done, over all process lives of the run."""

    epoch: int
    """The epoch that is trained, or comes next; counted from 0."""

    batches: int
    """Batches of this epoch that this rank has trained on."""

    resumed: bool
    """Whether this process went on from a checkpoint."""


class SpotHook:
    """
    Save on steps or seconds, leave safely when the machine is taken, and go on where the loop was.

    A loop with everything in it::

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

    A step is what Accelerate calls one: :meth:`after_step` counts where ``accelerator.sync_gradients``, also when
    an overflow made the scaler leave out the update. Nothing is saved within gradient accumulation.

    A resumed program runs its loop again from the head of the epoch, but with what is left of the batches. So what
    stands behind :meth:`after_step` in the body is not repeated for the saved step; what stands behind the last
    batch of an epoch is, in a resume from there. The same samples in the same order come from any loader, but
    random numbers drawn *within* a data set are the same only with :func:`spot_plugins.data.elastic_loader`.

    Every rank makes one. A ``SPOT_*`` variable stands for each setting that is None: ``SPOT_EVERY_STEPS`` for
    *every_steps*, and so on for all but *storage_options*. See :class:`~spot_plugins.config.SpotConfig` for more about
    each, and for the defaults.

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
        self._session = SpotSession(config, on_event=subscribers_of(on_event, hooks))
        self._registered: list[Any] = []
        self._streams = StreamsPart()
        self._position = PositionPart(accelerator, self._streams)
        self._num_prepared: int | None = None  # None: not resumed yet
        self._step = 0
        self._resumed = False
        self._step_is_open = False  # an optimizer has stepped and after_step() was not called
        self._paused = False

    def __enter__(self) -> SpotHook:
        """Take SIGTERM as a notice, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._session.watch_signals()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Save the end of the training and wait until it is stored; after an error, let go."""
        try:
            with _workers_end_first():
                if exc is not None:
                    self._session.fail(exc)
                elif self._num_prepared is not None:
                    self._session.finish(self._step)
        finally:
            self._session.close()

    @property
    def progress(self) -> Progress:
        """How far the training is now."""
        return Progress(
            step=self._step,
            epoch=self._position.epoch,
            batches=self._position.num_batches,
            resumed=self._resumed,
        )

    def register(self, name: str, part: Part) -> None:
        """
        Save and restore something of the user's own as well. Comes before :meth:`resume`.

        What ``accelerator.prepare`` returned and what ``accelerator.register_for_checkpointing`` was given need
        not be registered.

        Args:
            name: A word, the same in every process life.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
        """
        self._session.register(name, part)
        self._registered.append(part)

    def resume(self) -> Progress:
        """
        Go on from the newest committed step, if there is one. Comes behind ``prepare``, once, on every rank.

        Returns:
            How far the training is: ``Progress(step=0, epoch=0, batches=0, resumed=False)`` on a first run.

        Raises:
            ConfigError: Nothing is prepared, or something that is trained would not be saved.
            NothingToResumeError, IncompatibleCheckpointError, StoreError, UnsafeStateError: See
                :meth:`spot_plugins.session.SpotSession.resume`.
        """
        if self._num_prepared is not None:
            raise RuntimeError("resume() was called already")
        parts = [
            *prepared_parts(self._accelerator, self._registered, keep_batch=self._keep_batch),
            NamedPart("position", self._position),
            NamedPart("rng", self._streams),
        ]
        self._position.adopt_loaders()
        for named in parts:
            self._session.register(named.name, named.part, replicated=named.replicated)
        for optimizer in self._accelerator._optimizers:
            optimizer.optimizer.register_step_post_hook(self._on_optimizer_step)
        step = self._session.resume()
        self._step = step or 0
        self._resumed = step is not None
        self._num_prepared = num_prepared(self._accelerator)
        return self.progress

    def epochs(self, num_epochs: int) -> Iterator[int]:
        """
        Yield the epochs that are not done yet, counted from 0.

        The one in which the saved step lies comes again, also when all of its batches are done: the program's own
        code behind them may not be.
        """
        self._check_resumed()
        for epoch in range(self._position.epoch, num_epochs):
            self._position.enter_epoch(epoch)
            yield epoch
        self._position.enter_epoch(max(self._position.epoch, num_epochs))

    def batches(self, loader: Any) -> Iterator[Any]:
        """
        Yield the batches of *loader* in the present epoch, on a resume behind the last one trained on.

        Where the loop is left early by ``break``, decide that from :attr:`progress` at the head of the body: a
        counter of the program's own begins at 0 again.

        Args:
            loader: What ``accelerator.prepare`` returned. Of several loaders each has its own place; each may be
                gone through once per epoch.

        Raises:
            ConfigError: *loader* is not prepared, or something was prepared too late to be restored.
            RuntimeError: The calls are out of order.
        """
        self._check_resumed()
        num_late = num_prepared(self._accelerator) - (self._num_prepared or 0)
        if num_late > 0:
            raise ConfigError(
                f"{num_late} models, optimizers or schedulers were prepared after spot.resume(), so they are neither "
                f"restored nor saved. Prepare everything before"
            )
        return self._then_fence(self._position.batches(loader))

    def after_step(self) -> None:
        """
        Say that a batch is trained on: behind ``optimizer.step()``, ``scheduler.step()`` and all that belongs to it.

        Under gradient accumulation call it for every batch; it does nothing until the gradients are applied.

        Raises:
            Preempted: After a notice, once all is safe or the time is up.
            UnsafeStateError: Some state has no pickle-free form.
        """
        self._check_resumed()
        if not self._accelerator.sync_gradients:
            return
        self._step_is_open = False
        self._step += 1
        self._position.mark_step()
        if self._step == 1 and not self._position.used and self._accelerator._dataloaders:
            warnings.warn(
                "no batch came from spot.batches(loader), so the place in the data is not saved: a resumed run would "
                "train on the first samples again. Write `for batch in spot.batches(loader)`",
                stacklevel=2,
            )
        with _workers_end_first():
            self._session.after_step(self._step)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """
        Stand still behind a step, for example to validate, and be able to leave from within at :meth:`check`.

        Enter it right behind :meth:`after_step`, behind the last batch of an epoch, or at the head of the loop's
        body. The state is staged first, so that a notice has nothing left to copy. Random numbers that are drawn
        within come from a copy of the streams, also those that making an iterator draws: the training goes on the
        same whether the pause was completed or not.

        After leaving from a pause behind an epoch's last batch, or at the head of the body, the resumed program
        comes by again and repeats it. A pause that follows :meth:`after_step` in the body is not repeated; if the
        training depends on what it finds out, write it at the head of the body.

        Raises:
            Preempted: As :meth:`after_step`; at the end, if there was a notice.
        """
        self._check_resumed()
        streams = RngPart()
        state = streams.state_dict()
        self._enter_pause()
        try:
            yield
        except Exception:
            self._exit_pause()  # the program may catch it and train on
            raise
        finally:
            streams.load_state_dict(state)
        self._exit_pause()

    def check(self) -> None:
        """
        Within :meth:`pause`, as often as convenient: leave if there is a notice. Elsewhere it does nothing.

        Raises:
            Preempted: As :meth:`after_step`.
        """
        if self._paused:
            with _workers_end_first():
                self._session.in_pause()

    def _then_fence(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Behind the loop the program may swap weights, to validate with averaged ones for example."""
        try:
            yield from batches
        finally:
            self._session.fence()

    def _enter_pause(self) -> None:
        if self._step_is_open or not self._accelerator.sync_gradients:
            warnings.warn(
                "pause() in the middle of a step: the state cannot be saved here, so a notice has to wait for the next "
                "after_step(). Enter it behind after_step(), where accelerator.sync_gradients is True",
                stacklevel=4,
            )
            return
        self._session.enter_pause(self._step)
        self._paused = True

    def _exit_pause(self) -> None:
        if self._paused:
            self._paused = False
            with _workers_end_first():
                self._session.exit_pause()

    def _on_optimizer_step(self, *args: Any) -> None:
        self._step_is_open = True

    def _check_resumed(self) -> None:
        if self._num_prepared is None:
            raise RuntimeError("call spot.resume() first, behind accelerator.prepare()")


@contextmanager
def _workers_end_first() -> Iterator[None]:
    """
    End the workers of loaders before :exc:`Preempted` goes on to the program.

    On its way it closes the iterators of the loops that it leaves, and torch would wait for each busy worker there.
    """
    try:
        yield
    except Preempted:
        end_shielded_workers()
        raise
