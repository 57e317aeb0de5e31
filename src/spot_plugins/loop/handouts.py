"""The batches that a loop was given, and the ways of asking for them that a resume could not repeat."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from typing import Any, Final

from .told import Told

NUM_FIRST: Final = 4
"""Steps of a loader whose batches are counted one by one, to find loops that fetch a batch ahead."""

CYCLE: Final = (
    "itertools.cycle() repeats the batches that spot.batches() yields, which are only the rest of the epoch after a "
    "resume. Write spot.batches(loader, repeat=True) instead"
)
SHORT: Final = (
    "a loader that was resumed within its epoch has ended, and the loop trains on with the batches of another. If it "
    "repeats the batches that it got, it leaves out those from before the resume: write "
    "spot.batches(loader, repeat=True) instead"
)
ISLICE: Final = (
    "itertools.islice() counts the batches of spot.batches() from the first one after a resume. Write "
    "spot.batches(loader, limit=...) instead, which counts from the head of the epoch"
)
ENUMERATE: Final = (
    "enumerate() counts the batches of this resumed epoch from {count}, and {start} came before the resume. Write "
    "`batches = spot.batches(loader)` and `enumerate(batches, batches.start)`, or use spot.progress"
)
ZIP: Final = (
    "zip() pairs the batches of spot.batches() with a {kind}, which begins anew after a resume while the batches do "
    "not. Take its items from a loader by spot.batches() too, or from spot.progress"
)
AHEAD: Final = (
    "two batches were handed out before the first step, and one before each of the next steps. So the loop fetches a "
    "batch ahead, or throws one away, and a resumed run would leave that batch out. Fetch each batch after the "
    "after_step() of the batch before it"
)
NO_BATCH: Final = (
    "after_step() reported a step for which spot.batches() handed out no batch. A resumed run continues with the next "
    "batch, so it would leave out what is still to be done with the last one. If a batch is trained on several times, "
    "call after_step() once, after the last time. If the loop fetches a batch ahead, fetch it after after_step()"
)
FOOT: Final = (
    "the loop over spot.batches() was left by `break` after after_step(). A run that is resumed from that very step "
    "would train on one more batch before it comes to the `break` again. Test at the head of the body, or use "
    "spot.batches(loader, limit=...) or spot.epochs(n, max_steps=...)"
)

_RESTARTING: Final[tuple[type, ...]] = (itertools.count, type(iter([])), type(iter(())), type(iter(range(0))))
"""Kinds of iterators that begin anew with the program."""


class HandOuts:
    """Counts the batches that each loader handed out, by its number in the framework."""

    def __init__(self, told: Told) -> None:
        self.total = 0
        """Batches that were handed out in this process."""
        self.since_step: Counter[int] = Counter()
        """Batches that were handed out after the last step, by loader."""
        self._told = told
        self.is_told = False
        """True if the program was told of a mistake that makes it look as if it fetched batches ahead."""
        self._first: dict[int, list[int]] = {}  # batches before each of the first steps, until a loader ends
        self._has_ended = False  # any loader
        self._ended: set[int] = set()  # loaders that have ended after the last step
        self._short: int | None = None  # a resumed loader that has ended beside another
        self._steps_after_short = 0
        self._checked: set[int] = set()  # loaders whose consumer was looked at
        self._is_left_at_foot = False

    def hand_out(self, index: int) -> None:
        """Count a batch of loader *index*."""
        self.total += 1
        self.since_step[index] += 1

    def end(self, index: int, *, is_resumed: bool) -> None:
        """Take note that loader *index* has ended, in an epoch that may have been resumed in its middle."""
        self._ended.add(index)
        self._has_ended = True
        if is_resumed and any(other != index for other in self.since_step):
            self._short, self._steps_after_short = index, 0

    def leave(self, *, is_trained: bool) -> None:
        """Take note that a loop was left before its loader has ended, after it has trained on its last batch or not."""
        # A zip() leaves the longer of its loaders. It would do so again.
        self._is_left_at_foot |= is_trained and not self._ended
        self._has_ended = True

    def end_step(self) -> None:
        """Take note that a step has ended, and warn of a loop that a resume could not repeat."""
        self.confirm()
        if self.total > 0 and not self.since_step:
            self._told(NO_BATCH)
        for index, number in self.since_step.items():
            first = self._first.setdefault(index, [])
            if len(first) < NUM_FIRST and not (self._has_ended or self.is_told):
                first.append(number)
                if first == [2, *[1] * (NUM_FIRST - 1)]:
                    self._told(AHEAD)
        if self._short is not None and self.since_step and self._short not in self.since_step:
            self._steps_after_short += 1
            if self._steps_after_short == 2:
                self._told(SHORT)
        self.since_step.clear()
        self._ended.clear()

    def confirm(self) -> None:
        """Warn of a loop that was left at the foot of its body, now that no error has left it."""
        if self._is_left_at_foot:
            self._is_left_at_foot = False
            self._told(FOOT)

    def look_at_consumer(self, index: int, batches: Any, start: int) -> None:
        """
        Warn if the object that takes *batches* would take other ones after a resume. Looks once per loader.

        Args:
            index: The number of the loader.
            batches: The object that the program got.
            start: Batches of the epoch that were done before it.
        """
        if index in self._checked:
            return
        self._checked.add(index)
        for holder in gc.get_referrers(batches):
            if type(holder) is itertools.cycle:
                self._told(CYCLE)
            elif type(holder) is itertools.islice:
                self._told(ISLICE)
            elif type(holder) is enumerate and start > 0:
                reduced: Any = holder.__reduce__()
                if (count := reduced[1][1]) < start:
                    self._told(ENUMERATE, count=count, start=start)
            elif type(holder) is tuple and any(type(other) is zip for other in gc.get_referrers(holder)):
                kinds = [type(item).__name__ for item in holder if isinstance(item, _RESTARTING)]
                if kinds:
                    self._told(ZIP, kind=kinds[0])
