"""The epochs of a training loop, and the random streams that are restored in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any

from ..data.rng import are_at, raw_streams
from ..state import RngPart, ShardedPart


class StreamsPart(ShardedPart):
    """
    The random streams of this process.

    They are restored twice: on a resume, and by :meth:`restore` at the place where the loop continues. Code between
    the two, such as the head of an epoch, may draw from them.
    """

    def __init__(self) -> None:
        self._part = RngPart()
        self._loaded: dict[str, Any] | None = None
        self._mark: tuple[Any, ...] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the streams as they are now."""
        return self._part.state_dict()

    def for_new_rank(self, state: dict[str, Any], rank: int) -> dict[str, Any]:
        """Return the streams of a rank that is new to the run."""
        return self._part.for_new_rank(state, rank)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the streams, and keep *state* for :meth:`restore`."""
        self._loaded = state
        self.restore()

    def restore(self) -> None:
        """Restore the streams again, if a state was loaded."""
        if self._loaded is not None:
            self._part.load_state_dict(self._loaded)
            if self._mark is not None:
                self.mark()

    def mark(self) -> None:
        """Keep the streams for :attr:`are_drawn_from`, if a state was loaded."""
        if self._loaded is not None:
            self._mark = raw_streams()

    @property
    def are_drawn_from(self) -> bool:
        """True if anything was drawn since the last :meth:`mark`, and nothing was restored."""
        return self._mark is not None and not are_at(self._mark)


class Epochs:
    """
    The epochs of a loop, counted from 0.

    Args:
        streams: The random streams of the process.
        is_over: Returns True once the training has done as many steps as it was asked for.
    """

    def __init__(self, streams: StreamsPart, is_over: Callable[[], bool]) -> None:
        self.present = 0
        """The epoch that is trained now, or comes next."""
        self.have_ended = False
        """True if no epoch is left for this process."""
        self.is_cut_short = False
        """True if the last step of all, and the program's own code after it, were done before the epoch was."""
        self._streams = streams
        self._is_over = is_over
        self._is_loaded = False
        self._has_entered = False  # an epoch

    def left(self, num_epochs: int | None) -> Generator[int]:
        """Yield the epochs that are not done, up to *num_epochs*, or to the last step of all."""
        comes_again = self._is_loaded and not self.is_cut_short
        numbers = itertools.count(self.present) if num_epochs is None else range(self.present, num_epochs)
        for epoch in numbers:
            if self._is_over() and not comes_again:
                self.have_ended = self.is_cut_short = True
                return
            comes_again = False
            self.enter(epoch)
            yield epoch
        self.have_ended = True
        self.enter(max(self.present, num_epochs or 0))

    def enter(self, epoch: int) -> None:
        """
        Let the training come to *epoch*.

        At the first epoch of the process this restores the streams for the code at its head. A loader that continues
        in the middle of the epoch restores them once more.
        """
        self.present = epoch
        if not self._has_entered:
            self._has_entered = True
            self._streams.restore()

    def load(self, epoch: int, *, is_cut_short: bool) -> None:
        """Let the training continue in *epoch*."""
        self.present, self.is_cut_short, self._is_loaded = epoch, is_cut_short, True
