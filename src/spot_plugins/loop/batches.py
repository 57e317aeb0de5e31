"""The batches of a loader, as the loop takes them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from .handouts import HandOuts


class Batches(Iterator[Any]):
    """
    The batches of one epoch that are not done, as :meth:`.Loop.batches` returns them.

    ``len()`` is the number of all batches that it yields. It does not shrink while they are taken. A loader without a
    length, or one that is repeated, has none.

    A progress bar over the whole epoch is
    ``tqdm(batches, initial=batches.start, total=batches.start + len(batches))``.
    """

    def __init__(
        self, generator: Generator[Any], *, index: int, start: int, length: int | None, handouts: HandOuts
    ) -> None:
        self._generator = generator
        self._index = index
        self._start = start
        self._length = length
        self._handouts: HandOuts | None = handouts

    @property
    def start(self) -> int:
        """Batches of this epoch that were done before, so that ``enumerate(batches, batches.start)`` counts on."""
        return self._start

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("these batches have no length: their loader has none, or is repeated without an end")
        return self._length

    def __next__(self) -> Any:
        if self._handouts is not None:
            self._handouts.look_at_consumer(self._index, self, self._start)
            self._handouts = None
        return next(self._generator)

    def close(self) -> None:
        """Take no more batches, as ``break`` does."""
        self._generator.close()
