"""A checksum of the order in which a loader fetched its samples, to find out whether an epoch can be replayed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
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

    def add(self, drawn: Any) -> None:
        """Add the index of a sample, or the indices of a batch."""
        if self._sum is None:
            return
        if (data := _bytes_of(drawn)) is None:
            self._sum = self._expected = None
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

    It has all attributes of that sampler. Iterators that are made beside the pass of a position are not recorded.
    """

    _recorded: Any
    _order: Order | None

    def __init__(self, sampler: Any) -> None:
        self.__dict__["_recorded"] = sampler
        self.__dict__["_order"] = None

    def record(self, order: Order) -> None:
        """Add to *order* what the next iterator yields that is not only made. With workers torch makes two."""
        self.__dict__["_order"] = order

    def __iter__(self) -> Iterator[Any]:
        order, self.__dict__["_order"] = self._order, None
        if order is not None:
            order.on_begin()
        for drawn in self._recorded:  # only now, so that a sampler that draws in __iter__ draws after on_begin()
            if order is not None:
                order.add(drawn)
            yield drawn

    def __len__(self) -> int:
        return len(self._recorded)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for missing names alone. Our own are missing while an instance is copied.
        if name in ("_recorded", "_order"):
            raise AttributeError(name)
        return getattr(self._recorded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._recorded, name, value)


def recorded_sampler(loader: Any) -> RecordedSampler | None:
    """
    Return the stand-in for the sampler of *loader*, which is put into its place.

    None if no record is needed. That is so for a stream, whose samples have no index, and for the samplers of torch
    and Accelerate whose order depends on nothing but a seed, the epoch and the size of the data.
    """
    plain = plain_loader(loader)
    if not isinstance(plain, DataLoader) or streams(loader) or _is_repeatable(loader):
        return None
    name = "sampler" if plain.batch_sampler is None else "batch_sampler"
    sampler = getattr(plain, name)
    if not isinstance(sampler, RecordedSampler):
        sampler = RecordedSampler(sampler)
        replace_index_sampler(plain, name, sampler)
    return sampler


def _is_repeatable(loader: Any) -> bool:
    found = [type(getattr(each, "_recorded", each)) for each in samplers(loader)]
    is_known = all(each in _REPEATABLE or each.__name__ in _REPEATABLE_NAMES for each in found)
    return bool(found) and is_known and not _has_own_batches(loader)


def _has_own_batches(loader: Any) -> bool:
    """Return True if a batch sampler of *loader* is a class of the program, which may decide the order itself."""
    found = [getattr(each, "_recorded", each) for each in batch_samplers(plain_loader(loader))]
    return any(type(each).__module__.partition(".")[0] not in ("torch", "accelerate", "lightning") for each in found)


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
