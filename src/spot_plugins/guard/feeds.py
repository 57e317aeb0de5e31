"""Iterators of loaders that feed the training although the position in the loader is not saved."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Final

from ..data.unwrap import plain_loader
from . import internals
from .census import loaders_in
from .look import Look

NUM_STEPS: Final = 8
"""Steps after a look in which iterators are watched."""
FIRST_LOOK: Final = 1


@dataclass(slots=True)
class _Feed:
    iterator: weakref.ref[Any]
    name: str
    num_yielded: int
    num_intervals: int = 0


class Feeds:
    """
    The iterators that no position tracks. One that yields between two steps, twice, feeds the training.

    An iterator that is read in a pause, for example to validate, does not.
    """

    def __init__(self) -> None:
        self._feeds: list[_Feed] = []
        self._steps_left = 0
        self._skips_interval = False

    def pause(self) -> None:
        """Leave out what is read until the next step."""
        self._skips_interval = True

    def after_step(self) -> list[str]:
        """Return the names of the loaders that turn out to feed the training, each once."""
        if not self._feeds:
            return []
        skips, self._skips_interval = self._skips_interval, False
        names = []
        for feed in list(self._feeds):
            live = feed.iterator()
            num_before, feed.num_yielded = feed.num_yielded, internals.num_yielded(live)
            if feed.num_yielded > num_before and not skips:
                feed.num_intervals += 1
            if live is None or feed.num_intervals >= 2:
                self._feeds.remove(feed)
            if feed.num_intervals >= 2:
                names.append(feed.name)
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._feeds.clear()
        return names

    def watch(self, look: Look) -> None:
        """Watch the iterators that *look* has found and no look before."""
        samplers, datasets = self._tracked(look)
        for iterator in look.census.iterators:
            if id(iterator) in look.known:
                continue
            look.known.add(id(iterator))
            shared = internals.index_sampler(iterator)
            dataset = internals.dataset_of(iterator)
            if id(shared) in samplers if shared is not None else id(dataset) in datasets:
                continue
            loader = look.census.loader_of(iterator)
            name = f"a DataLoader of {type(dataset).__name__}"
            if loader is not None and id(loader) in look.places.names:
                name = look.places.name_of(loader)
            self._feeds.append(_Feed(weakref.ref(iterator), name, internals.num_yielded(iterator)))
        self._steps_left = NUM_STEPS

    def _tracked(self, look: Look) -> tuple[set[int], set[int]]:
        """Return ``id()`` of the samplers and data sets of loaders whose position is saved, or that are named."""
        owners = look.recording().owners
        loaders = [*look.tracked]
        for position in look.census.positions:
            if id(position) in owners:
                continue
            if look.number == FIRST_LOOK:
                look.known.add(id(position))
            elif id(position) not in look.known:  # it was made after the recording
                loaders += loaders_in(position)
        loaders += [thing for thing in look.host.named() if hasattr(thing, "batch_sampler")]
        plain = [plain_loader(loader) for loader in loaders]
        samplers = {id(internals.index_sampler(loader)) for loader in plain}
        return samplers, {id(getattr(loader, "dataset", None)) for loader in plain}
