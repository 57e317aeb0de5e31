"""The optimizer steps of a training loop, and the pauses between them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from ..data import end_shielded_workers
from ..errors import Preempted
from ..session import PROGRAM, Pause, SpotSession


class Steps:
    """The steps of a loop. It counts them, reports them to the session, and knows if one is under way."""

    def __init__(self, accelerator: Accelerator, session: SpotSession) -> None:
        self.number = 0
        """Optimizer steps done, over all processes of the run."""
        self._accelerator = accelerator
        self._session = session
        self._num_batches = 0  # since the last step
        self._is_open = False  # an optimizer has stepped, and end() was not called after it
        self._pause: Pause | None = None

    def follow(self, optimizers: Iterable[Any]) -> None:
        """Notice every step of Accelerate's *optimizers*."""
        for optimizer in optimizers:
            optimizer.optimizer.register_step_post_hook(self._on_optimizer_step)

    def count_batch(self) -> None:
        """Count a batch, whether a step ends with it or not."""
        self._num_batches += 1

    def end(self) -> None:
        """Count a step. The program has done everything that belongs to it."""
        self._is_open = False
        self.number += 1

    def report(self, position: tuple[int, ...]) -> None:
        """Report the last step to the session, which may save it or leave. *position* is part of its fingerprint."""
        num_batches, self._num_batches = self._num_batches, 0
        with workers_end_first():
            self._session.after_step(self.number, position=position, num_batches=num_batches)

    def begin_pause(self) -> None:
        """Begin a pause, or warn in the middle of a step. The warning points at the caller of ``spot.pause``."""
        if self._is_open or not self._accelerator.sync_gradients:
            warnings.warn(
                "pause() in the middle of a step: the state cannot be saved here, so a notice has to wait for the next "
                "after_step(). Enter it after after_step(), while accelerator.sync_gradients is True",
                stacklevel=4,
            )
            return
        pause = self._session.pause(self.number)
        pause.__enter__()
        self._pause = pause

    def check_pause(self) -> None:
        """Leave if there is a notice and the training stands in a pause."""
        if self._pause is not None:
            with workers_end_first():
                self._pause.check()

    def end_pause(self) -> None:
        """End the pause, if there is one. Leave if there is a notice."""
        pause, self._pause = self._pause, None
        if pause is not None:
            with workers_end_first():
                pause.__exit__(None, None, None)

    def keep(self, step: int) -> None:
        """Keep *step*. In the middle of a step the live state is not saved, because it belongs to no step."""
        is_between = not self._is_open and self._accelerator.sync_gradients
        self._session.keeper.keep(step, PROGRAM, saves_live=is_between)

    def _on_optimizer_step(self, *args: Any) -> None:
        self._is_open = True


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
