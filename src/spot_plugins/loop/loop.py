"""The loop, which translates calls of a program into calls of the session and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..config import SpotConfig
from ..errors import ConfigError
from ..events import Subscriber
from ..guard import Host, Kind
from ..monitor.scalars import Scalars
from ..session import SpotSession
from ..state.part import Part
from .batches import Batches
from .epochs import StreamsPart
from .framework import Framework
from .one_loop import claim, release
from .peek import Peek
from .position import PositionPart
from .progress import Progress
from .saved import NamedPart, Saved
from .steps import Steps, workers_end_first
from .told import Told

if TYPE_CHECKING:
    from typing_extensions import Self  # torch has it; Python only since 3.11


class Loop:
    """
    Base of the hosts for loops that the program writes itself. A host says in :meth:`_make_saved` what it saves.

    Args:
        framework: The framework under the loop.
        config: The settings of the run.
        remedies: The advice for each kind of thing that is not saved.
        on_event: Functions that are called with every event of this rank.
    """

    def __init__(
        self,
        framework: Framework,
        config: SpotConfig,
        remedies: Mapping[Kind, str],
        on_event: Sequence[Subscriber],
    ) -> None:
        self._framework = framework
        self._registered: list[Any] = []
        self._told = Told()
        self._streams = StreamsPart()
        self._position = PositionPart(framework, self._streams, lambda: self._steps.are_done, config.fast_forward)
        host = Host(
            remedies=remedies,
            roots=framework.roots,
            loaders=self._position.begun_loaders,
            named=lambda: list(self._told.things),
            log_level=framework.log_level,
            is_bare=False,
        )
        self._scalars = Scalars()
        watchers = (self._scalars,) if framework.has_trackers or self._scalars.are_shown else ()
        self._session = SpotSession(config, on_event=(*on_event, *watchers), host=host)
        self._steps = Steps(framework, self._session, self._told, self._scalars)
        self._saved: Saved | None = None  # None: not resumed yet
        self._peek = Peek(self._session)

    def _make_saved(self) -> Saved:
        """Return what is saved beside the position in the data and the random streams. Called at the resume."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """
        Join the run, start the pusher, and take SIGTERM as a notice if this is the main thread.

        Raises:
            ConfigError: Another loop, session or callback of this process is open.
        """
        claim(self, self._framework.words.name)
        try:
            self._session.__enter__()
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
            elif self._saved is not None:
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
        Save and restore another object of the program too. Call it before :meth:`resume`.

        Args:
            name: A word, equal in every process of the run.
            part: An object with ``state_dict()`` and ``load_state_dict()``.
        """
        self._session.register(name, part)
        self._registered.append(part)

    def peek(self) -> Progress:
        """
        Return the progress from which :meth:`resume` will continue, before the program has built anything.

        It loads no state. Call it on every rank, for example to build a model that has grown during the run.
        ``batches`` is 0, because
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
        Continue from the newest committed step, if there is one. Call it once, on every rank.

        Everything that is trained has to be there by then. With Accelerate this means after ``prepare``. Schedulers of
        torch that are bound to prepared optimizers are restored there too, even if they are not prepared.

        Returns:
            The progress of the training, ``Progress(step=0, epoch=0, batches=0, resumed=False)`` on a first run.

        Raises:
            ConfigError: There is nothing to save, or something that is trained would not be saved.
            NothingToResumeError, IncompatibleCheckpointError, StoreError, UnsafeStateError: See
                :meth:`spot_plugins.session.SpotSession.resume`.
        """
        if self._saved is not None:
            raise RuntimeError("resume() was called already")
        saved = self._make_saved()
        parts = [*saved.parts(), NamedPart("position", self._position), NamedPart("rng", self._streams)]
        self._position.adopt_loaders()
        for named in parts:
            self._session.register(named.name, named.part)
        saved.describe(self._session.program)
        self._session.program.add_loaders(self._framework.loaders)
        self._session.program.epoch = lambda: self._position.epochs.present
        step = self._session.resume() or 0
        self._peek.compare(step)
        saved.resume(step)
        self._steps.open(step, self._registered, self._position)
        self._saved = saved
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
            loader: A loader that ``accelerator.prepare`` or ``register_loader`` returned. Each loader has its own
                position and may be iterated once per epoch.
            limit: Most batches of an epoch, counted from its head, also after a resume.
            repeat: Begin again after the last batch, without an end. The position of such a loader does not depend on
                the epochs: each call continues where the loop before has stopped.

        Raises:
            ConfigError: *loader* is neither prepared nor registered, or something was prepared too late to be restored.
            RuntimeError: The calls are out of order.
        """
        self._check_resumed().check_none_is_late()
        return self._position.batches(loader, self._steps.guard, self._session.fence, limit=limit, repeat=repeat)

    def after_step(self, *, stepped: bool | None = None) -> None:
        """
        End a batch. Call it after ``optimizer.step()``, ``scheduler.step()`` and all that belongs to the batch.

        With gradient accumulation, by a framework or by hand, call it for every batch. It does nothing until an
        optimizer has stepped. Call it once per batch, also if several optimizers step, or one of them several times.

        Args:
            stepped: True if the batch has made a step that torch does not know of, for example in a CUDA graph. False
                if gradients of this batch wait for a step, while another optimizer has stepped. None: find out.

        Raises:
            Preempted: There was a notice, and the state is stored or the time is up.
            UnsafeStateError: Some state has no pickle-free form.
        """
        self._check_resumed().end_batch()
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
        Call it with *copied* before a CUDA graph is captured. In a capture, or if a copy hangs for 600 s, it raises a
        RuntimeError.
        """
        self._session.fence(copied=copied)

    def _check_resumed(self) -> Saved:
        if self._saved is None:
            raise RuntimeError(f"call spot.resume() first, after {self._framework.words.before_resume}")
        return self._saved
