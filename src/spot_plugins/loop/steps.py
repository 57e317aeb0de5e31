"""The optimizer steps of a training loop, and the pauses between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..data import end_shielded_workers
from ..errors import Preempted
from ..guard import warn
from ..monitor.scalars import Scalars
from ..session import PROGRAM, Pause, SpotSession
from ..state import RngPart
from .framework import Framework
from .guard import LoopGuard
from .position import PositionPart
from .told import Told

NO_LOADER: Final = (
    "no batch came from spot.batches(loader), so the position in the data is not saved, and a resumed run would train "
    "on the first samples again. Write `for batch in spot.batches(loader)`"
)
MIDST: Final = (
    "pause() in the middle of a step: the state cannot be saved here, so a notice has to wait for the next "
    "after_step(). Enter it after the after_step() of a batch that has ended a step"
)


class Steps:
    """The steps of a loop. It counts them, reports them to the session, and stands still in pauses."""

    def __init__(self, framework: Framework, session: SpotSession, told: Told, scalars: Scalars) -> None:
        self.number = 0
        """Optimizer steps done, over all processes of the run."""
        self.last: int | None = None
        """The step after which the training is done. None: the program decides that."""
        self.guard = LoopGuard(framework, self.end, told)
        self._framework = framework
        self._session = session
        self._scalars = scalars
        self._num_batches = 0  # since the last step
        self._pause: Pause | None = None
        self._position: PositionPart | None = None

    @property
    def are_done(self) -> bool:
        """True if the training has made as many steps as it was asked for."""
        return self.last is not None and self.number >= self.last

    def open(self, number: int, registered: list[Any], position: PositionPart) -> None:
        """Begin to count after step *number*. *position* moves on with the steps."""
        self.number = number
        self._position = position
        self.guard.open(registered)

    def end(self, count: int = 1) -> None:
        """Count *count* steps, with everything that the program does for them, and let the session save or leave."""
        self.number += count
        if self._position is not None:
            self._position.mark_step()
            self.guard.name_active(self._position.tracked_loaders)
        with workers_end_first():
            self._report()
        self._framework.write_scalars(self._scalars)

    def finish(self) -> None:
        """Save the end of the training and wait until it is stored."""
        self.guard.finish()
        if self._position is not None:
            self._position.finish()
        with workers_end_first():
            self._session.finish(self.number)
        self._framework.write_scalars(self._scalars)

    def end_batch(self, stepped: bool | None) -> None:
        """End a batch, and the step if it makes one. *stepped* is the word of the program. None: find out."""
        self._num_batches += 1
        if not self.guard.after_step(stepped):
            return
        used = self._position is not None and self._position.used
        if self.number == 0 and not used and self._framework.loaders:
            warn(NO_LOADER)
        self.end()

    def _report(self) -> None:
        """Report the last step. The position in the data and the batches since the step before are its fingerprint."""
        position = () if self._position is None else self._position.numbers()
        num_batches, self._num_batches = self._num_batches, 0
        self._session.after_step(self.number, position=position, num_batches=num_batches)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """
        Stand still. What belongs to training and not to the pause is afterwards as it was before.

        This holds for the random streams, and for the loaders that the framework believes to be in use: a validation
        that is left by ``break`` would leave its loader there, and gradients would be accumulated past the end of an
        epoch.
        """
        streams = RngPart()
        state, active = streams.state_dict(), self._framework.active_loaders
        num_steps = self.guard.num_optimizer_steps
        self._begin_pause()
        try:
            yield
        except Exception:
            self._end_pause()  # the program may catch the error and continue to train
            raise
        finally:
            streams.load_state_dict(state)
            self._framework.active_loaders = active
            self.guard.skip_pause(num_steps)
        self._end_pause()

    def check_pause(self) -> None:
        """Leave if there is a notice and the training stands in a pause."""
        if self._pause is not None:
            with workers_end_first():
                self._pause.check()

    def _begin_pause(self) -> None:
        """Begin a pause, or warn in the middle of a step."""
        self.guard.handouts.confirm()
        if self.guard.is_within_step:
            warn(MIDST)
            return
        pause = self._session.pause(self.number)
        pause.__enter__()
        self._pause = pause

    def _end_pause(self) -> None:
        """End the pause, if there is one. Leave if there is a notice."""
        pause, self._pause = self._pause, None
        if pause is not None:
            with workers_end_first():
                pause.__exit__(None, None, None)

    def keep(self, step: int | None) -> None:
        """
        Keep *step*, or the present one.

        In the middle of a step the live state is not saved, because it belongs to no step.
        """
        if not self.number:
            raise RuntimeError("keep() before the first step: there is nothing to keep yet")
        step = self.number if step is None else step
        self._session.keeper.keep(step, PROGRAM, saves_live=not self.guard.is_within_step)


@contextmanager
def workers_end_first() -> Iterator[None]:
    """
    End the workers of loaders before :exc:`Preempted` reaches the program.

    The exception closes the iterators of the loops that it leaves, and torch would wait for each busy worker there.
    """
    try:
        yield
    except Preempted:
        end_shielded_workers()
        raise
