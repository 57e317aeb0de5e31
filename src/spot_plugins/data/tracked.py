"""A loader whose iterators are counted, for hosts that combine several loaders in one loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import FastForward
from .position import LoaderPosition


class TrackedLoader:
    """
    A stand-in for a loader that keeps the position by itself.

    A host iterates it in place of the loader. Every iterator that is made from it in one epoch is a pass over the
    loader, so a short loader may be repeated beside a long one. The position says which pass it is, and how many of
    its batches were yielded. The passes before it are not made again after a resume.

    The host calls :meth:`begin_epoch` once before it makes the first iterator of an epoch.
    """

    def __init__(self, loader: Any, world_size: int, *, fast_forward: FastForward = "auto") -> None:
        """
        Inspect *loader*, see :class:`.LoaderPosition`.

        Args:
            loader: One loader, as the host iterates it.
            world_size: Ranks that read their share of it.
            fast_forward: The way to the position, see :class:`.LoaderPosition`.
        """
        self.loader = loader
        self.position = LoaderPosition(loader, world_size, fast_forward=fast_forward)
        self._epoch: int | None = None  # to be begun with the next iterator
        self._iterator: _CountedIterator | None = None

    def __len__(self) -> int:
        """Return the number of batches of one pass."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the next pass, or over what is left of a loaded one."""
        if self._epoch is None:
            self.position.begin_pass()
        else:
            self.position.begin_epoch(self._epoch)
            self._epoch = None
        self._iterator = _CountedIterator(self.loader, self.position)
        return self._iterator

    def begin_epoch(self, epoch: int) -> None:
        """Let the next iterator make the first pass of *epoch*, or continue the pass of a position that was loaded."""
        self._epoch = epoch
        self._iterator = None

    @property
    def num_passes(self) -> int:
        """Number of passes that were completed in this epoch."""
        return self.position.num_passes

    def num_left(self, limit: float) -> float:
        """
        Return the number of batches from a loaded position to the end of its pass. Infinity if it is unknown.

        Args:
            limit: Most batches that the host takes from one pass.
        """
        try:
            length = len(self)
        except (TypeError, NotImplementedError):
            return float("inf")
        return 0 if self.position.ended else max(min(length, limit) - self.position.num_done, 0)

    def numbers(self) -> tuple[int, ...]:
        """Return the position as numbers, see :meth:`.LoaderPosition.numbers`, after the number of passes."""
        num_yielded = 0 if self._iterator is None else self._iterator.num_yielded
        return self.num_passes, *self.position.numbers(num_yielded)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batches that the present iterator has yielded."""
        if self._iterator is None:
            return self.position.state_dict(0)
        return self.position.state_dict(self._iterator.num_yielded, ended=self._iterator.ended)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a position. Call it before :meth:`begin_epoch`."""
        self.position.load_state_dict(state_dict)


class _CountedIterator(Iterator[Any]):
    """An iterator over one pass that counts its batches."""

    def __init__(self, loader: Any, position: LoaderPosition) -> None:
        self.num_yielded = 0
        self.ended = position.ended
        self._position = position
        self._iterator: Iterator[Any] = iter(())
        if not self.ended:
            self._iterator = iter(loader)
            position.fast_forward(self._iterator)

    def __next__(self) -> Any:
        if not self.ended:
            self._position.note_fetch(self.num_yielded)
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.ended = True
            raise
        self.num_yielded += 1
        return batch
