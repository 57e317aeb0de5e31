"""The order in which a loader fetches its samples: a checksum of it, and a way to pass over its first part."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import xxhash
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from .internals import replace_index_sampler
from .unwrap import batch_samplers, plain_loader, samplers, streams

_REPEATABLE: Final = {RandomSampler, SequentialSampler, DistributedSampler}
_REPEATABLE_NAMES: Final = {"SeedableRandomSampler"}
"""Accelerate's, which is not imported."""
_PLAIN: Final = (int, float, str, bytes, bool, type(None))


class Order:
    """
    The number of draws from the sampler of one pass, and a checksum of them.

    Args:
        on_begin: Called right before the first draw.
    """

    def __init__(self, on_begin: Callable[[], None] = lambda: None) -> None:
        self.on_begin = on_begin
        self.num_drawn = 0
        self._sum: Any = xxhash.xxh3_64()
        self._expected: Mapping[str, Any] | None = None
        self._on_other: Callable[[], None] | None = None

    def expect(self, order: Mapping[str, Any] | None, on_other: Callable[[], None]) -> None:
        """Call *on_other* if the record differs from *order*, an earlier one, when as much is drawn."""
        self._expected, self._on_other = order, on_other

    def state_dict(self) -> dict[str, Any] | None:
        """Return the number and the checksum. None if nothing was drawn, or if something drawn has no plain form."""
        if self._sum is None or self.num_drawn == 0:
            return None
        return {"drawn": self.num_drawn, "checksum": self._sum.hexdigest()}

    def forget(self) -> None:
        """Record nothing, because the iterator keeps its own state."""
        self._sum = self._expected = None

    def add(self, drawn: Any) -> Any:
        """Add the index of a sample, or the indices of a batch, and return it."""
        if self._sum is not None:
            self._add(drawn)
        return drawn

    def _add(self, drawn: Any) -> None:
        if (data := _bytes_of(drawn)) is None:
            self.forget()
            return
        self._sum.update(data)
        self.num_drawn += 1
        if self._expected is not None and self.num_drawn == self._expected["drawn"]:
            expected, self._expected = self._expected, None
            if self._on_other is not None and expected["checksum"] != self._sum.hexdigest():
                self._on_other()


class RecordedSampler(Sampler[Any]):
    """
    A stand-in for the sampler that a loader fetches by. It adds to an :class:`Order` what one of its iterators yields.

    It can also keep the first draws of that iterator to itself, so that the loader does not fetch them. It has all
    attributes of the sampler. Iterators that are made beside the pass of a position yield what the sampler yields.
    """

    _recorded: Any
    _pending: tuple[Order | None, int] | None
    _last: _Draws | None
    _is_open: bool
    num_passed_over: int

    def __init__(self, sampler: Any) -> None:
        self.__dict__.update({"_recorded": sampler, "_is_open": False})
        self.record(None)

    def open(self, *, opens: bool) -> None:
        """With *opens*, let the next iterators be those of the sampler itself, because their state is restored."""
        self.__dict__["_is_open"] = opens

    def record(self, order: Order | None, *, pass_over: int = 0) -> None:
        """
        Prepare the next pass: the next iterator that is asked for a draw. With workers torch makes two.

        Args:
            order: Gets the draws of the pass. None: nobody does.
            pass_over: Draws that the iterator does not yield. :attr:`num_passed_over` counts them.
        """
        pending = None if order is None and not pass_over else (order, pass_over)
        self.__dict__.update({"_pending": pending, "_last": None, "num_passed_over": 0})

    def begin(self) -> None:
        """Let the iterator that was made last begin the pass now, if it has not begun."""
        if self._pending is not None and self._last is not None:
            self._last.begin()

    def __iter__(self) -> Iterator[Any]:
        if self._is_open:
            return iter(self._recorded)
        self.__dict__["_last"] = draws = _Draws(self._draws)
        return draws

    def _draws(self) -> Iterator[Any]:
        pending, self.__dict__["_pending"], self.__dict__["_last"] = self._pending, None, None
        order, pass_over = pending or (None, 0)
        if order is not None:
            order.on_begin()
        # Only now, so that a sampler that draws in __iter__ draws after on_begin().
        draws: Iterator[Any] = iter(self._recorded)
        if order is not None and hasattr(draws, "state_dict"):
            order.forget()
        elif order is not None:
            draws = map(order.add, draws)
        if pass_over:
            self.__dict__["num_passed_over"] = sum(1 for _ in islice(draws, pass_over))
        return draws

    def __len__(self) -> int:
        return len(self._recorded)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for missing names alone. Our own are missing while an instance is copied.
        if name in RecordedSampler.__annotations__:
            raise AttributeError(name)
        return getattr(self._recorded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._recorded, name, value)


class _Draws(Iterator[Any]):
    """
    An iterator that is made when it is asked for its first item. It has a state if that one has.

    torchdata makes two iterators and drops the first. If both were made at once, both would draw.
    """

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make
        self._draws: Iterator[Any] | None = None

    def begin(self) -> Iterator[Any]:
        """Return the iterator, which is made now if it was not made before."""
        if self._draws is None:
            self._draws = self._make()
        return self._draws

    def __next__(self) -> Any:
        return next(self.begin())

    def __getattr__(self, name: str) -> Any:
        if name not in ("state_dict", "load_state_dict", "update_state_dict") or self._draws is None:
            raise AttributeError(name)
        return getattr(self._draws, name)


def needs_record(loader: Any) -> bool:
    """
    Return True if a replay of *loader* might fetch other samples than its first time.

    That is not so for a stream, whose samples have no index, and for the samplers of torch and Accelerate whose order
    depends on nothing but a seed, the epoch and the size of the data.
    """
    return isinstance(plain_loader(loader), DataLoader) and not streams(loader) and not _is_repeatable(loader)


def recorded_sampler(loader: Any) -> RecordedSampler:
    """Return the stand-in for the sampler of *loader*, a ``DataLoader``, which is put into its place."""
    plain = plain_loader(loader)
    name = "sampler" if plain.batch_sampler is None else "batch_sampler"
    sampler = getattr(plain, name)
    if not isinstance(sampler, RecordedSampler):
        sampler = RecordedSampler(sampler)
        replace_index_sampler(plain, name, sampler)
    return sampler


def recorded_own_sampler(loader: Any) -> RecordedSampler | None:
    """
    Return the stand-in for the sampler of *loader*, a stateful one, which is put into its place.

    Returns:
        None for a sampler with a state, which the loader restores, and for one of a library, whose order depends on
        nothing that is not restored.
    """
    plain = plain_loader(loader)
    if not isinstance(plain, DataLoader) or streams(loader):
        return None
    *_, holder = plain, *batch_samplers(plain)
    name = "sampler" if hasattr(holder, "sampler") else "batch_sampler"
    holder = plain if name == "batch_sampler" else holder
    sampler = getattr(holder, name)
    if isinstance(sampler, RecordedSampler):
        return sampler
    if _is_of_library(sampler) or hasattr(sampler, "state_dict"):
        return None
    sampler = RecordedSampler(sampler)
    if holder is plain:
        replace_index_sampler(plain, name, sampler)
    else:
        holder.sampler = sampler
    return sampler


def _is_of_library(sampler: Any) -> bool:
    return type(sampler).__module__.partition(".")[0] in ("torch", "torchdata", "accelerate", "lightning")


def _is_repeatable(loader: Any) -> bool:
    found = [type(getattr(each, "_recorded", each)) for each in samplers(loader)]
    is_known = all(each in _REPEATABLE or each.__name__ in _REPEATABLE_NAMES for each in found)
    return bool(found) and is_known and not _has_own_batches(loader)


def _has_own_batches(loader: Any) -> bool:
    """Return True if a batch sampler of *loader* is a class of the program, which may decide the order itself."""
    found = [getattr(each, "_recorded", each) for each in batch_samplers(plain_loader(loader))]
    return not all(map(_is_of_library, found))


def _bytes_of(drawn: Any) -> Any:
    """Return bytes that are equal for equal indices in every process. None if there are none."""
    try:
        return array("q", drawn if isinstance(drawn, (list, tuple)) else (drawn,))
    except (TypeError, OverflowError):
        return repr(drawn).encode() if _is_plain(drawn) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN
