"""The position of the training loop in its epochs and loaders."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

import torch
from torch.utils.data import IterableDataset

from ..config import FastForward
from ..data import ElasticSampler, samplers, shield_workers
from ..data.replayed import MISSING
from ..data.unwrap import plain_loader
from ..errors import ConfigError
from .batches import Batches
from .epochs import Epochs, StreamsPart
from .framework import Framework
from .guard import LoopGuard
from .training_loader import TrainingLoader

DRAWN: Final = (
    "random numbers were drawn between the call of spot.batches() and its first batch, and this resumed epoch puts the "
    "random streams back at that batch. If the loop draws before it takes each batch, such as the loader to take it "
    "from, the training is another one now: draw from a torch.Generator that is seeded with spot.progress.step instead"
)


class PositionPart:
    """
    The epoch, and the position in each loader that :meth:`batches` was called with.

    A loader is known by its number in the framework. A batch counts once its optimizer step is done. So a
    resumed process sees a batch again if it was only yielded, or if its gradients were still being accumulated.

    Args:
        framework: The framework under the loop.
        streams: The random streams of the process.
        is_over: Returns True once the training has done as many steps as it was asked for.
        fast_forward: The way to the position in a plain loader, as the setting says.
    """

    def __init__(
        self, framework: Framework, streams: StreamsPart, is_over: Callable[[], bool], fast_forward: FastForward
    ) -> None:
        self.epochs = Epochs(streams, is_over)
        self._framework = framework
        self._streams = streams
        self._is_over = is_over
        self._fast_forward = fast_forward
        self._tracked: dict[int, TrainingLoader] = {}
        self._lengths: dict[int, int | None] = {}  # batches that the present iterators yield, if known
        self._endless: dict[int, Generator[Any]] = {}  # iterators of loaders that are repeated
        self._has_stepped = False
        self._num_yielded = 0  # batches of all loaders
        self._last_yielded: int | None = None  # number of the loader that yielded the last batch
        self._last_stepped: int | None = None  # the same at the last step

    def adopt_loaders(self) -> None:
        """Take over all loaders, also those that are used without :meth:`batches`."""
        for index, loader in enumerate(self._framework.loaders):
            shield_workers(loader)
            _give_own_generator(plain_loader(loader))
            # Accelerate deals out what an elastic sampler yields, so its position binds the sampler to one replica.
            # Else the samples would be dealt out twice.
            if any(isinstance(sampler, ElasticSampler) for sampler in samplers(loader)):
                self._track(index)

    @property
    def num_batches(self) -> int:
        """Batches of this epoch that were trained on, of the loader that yielded the last one."""
        if self._last_stepped is None:
            return 0
        tracked = self._tracked[self._last_stepped]
        return tracked.num_trained if tracked.is_repeated or tracked.position.epoch == self.epochs.present else 0

    @property
    def used(self) -> bool:
        """True if :meth:`batches` has yielded a batch, in this or an earlier process."""
        return self._last_yielded is not None

    @property
    def tracked_loaders(self) -> list[Any]:
        """The loaders whose positions are saved."""
        return [tracked.loader for tracked in self._tracked.values() if tracked.begun_epoch is not None]

    def begun_loaders(self) -> list[Any]:
        """Return the loaders that :meth:`batches` was called with, or all loaders as long as it was not called."""
        return self.tracked_loaders or self._framework.loaders

    def batches(
        self, loader: Any, guard: LoopGuard, fence: Callable[[], None], *, limit: int | None, repeat: bool
    ) -> Batches:
        """
        Return an iterator over what is left of the present epoch of *loader*.

        Args:
            loader: A loader of the framework.
            guard: Compares what is handed out with what is trained.
            fence: Called after the loop, because the program may swap weights there, for example to validate.
            limit: Batches of the epoch to yield, counted from its head. None: all.
            repeat: Begin again after the last batch, without an end.

        Raises:
            ConfigError: *loader* is unknown to the framework, or *limit* cannot be.
            RuntimeError: *loader* was iterated in this epoch already.
        """
        if repeat and limit is not None:
            raise ConfigError(f"limit={limit} and repeat=True exclude each other: leave out one of them")
        if limit is not None and limit < 0:
            raise ConfigError(f"limit={limit} must not be negative")
        prepared = self._framework.loaders
        index = next((number for number, known in enumerate(prepared) if known is loader), None)
        if index is None:
            raise ConfigError(f"this {type(loader).__name__} {self._framework.words.unknown_loader}")
        tracked = self._track(index)
        tracked.require_repeated(repeat)
        if repeat:
            generator = _then(self._repeat(index, guard), fence)
            return Batches(generator, index=index, start=0, length=None, handouts=guard.handouts)
        if tracked.begun_epoch == self.epochs.present:
            raise RuntimeError(
                f"batches() was called twice with one loader in epoch {self.epochs.present}. Let every pass over the "
                f"data be an epoch of spot.epochs(), or call batches(loader, repeat=True)"
            )
        start = tracked.num_before(self.epochs.present)
        length = _num_left(loader, start, limit)
        if tracked.left_epoch == tracked.loaded_epoch == self.epochs.present:
            length = 0
        self._streams.mark()
        generator = _then(self._iterate(index, guard, limit, length), fence)
        return Batches(generator, index=index, start=start, length=length, handouts=guard.handouts)

    def is_last_batch(self, indices: Iterable[int]) -> bool:
        """Return True if the last batch of the present epoch was handed out, of one of the loaders *indices*."""
        used = ((self._lengths.get(index), self._tracked[index]) for index in indices)
        return any(each.num_yielded == length for length, each in used if each.begun_epoch == self.epochs.present)

    def _iterate(self, index: int, guard: LoopGuard, limit: int | None, length: int | None) -> Generator[Any]:
        epoch = self.epochs.present
        self.epochs.enter(epoch)
        tracked = self._tracked[index]
        was_left = tracked.left_epoch == tracked.loaded_epoch == epoch
        is_resumed = tracked.num_before(epoch) > 0
        self._lengths[index] = length
        try:
            for batch in self._fetch(tracked, epoch, guard, 0 if was_left else limit):
                self._last_yielded = index
                self._num_yielded += 1
                guard.hand_out(index)
                yield batch
        except GeneratorExit:
            if tracked.begun_epoch == epoch:
                tracked.leave(self._num_yielded)
                guard.handouts.leave(is_trained=not tracked.is_ahead)
            raise
        finally:
            if tracked.begun_epoch == epoch:  # else a loop of a later epoch has begun
                self._framework.deactivate(tracked.loader)
        guard.handouts.end(index, is_resumed=is_resumed)

    def _fetch(
        self, tracked: TrainingLoader, epoch: int, guard: LoopGuard, limit: int | None, *, is_active: bool = True
    ) -> Generator[Any]:
        """Yield what is left of *epoch* of one loader, and restore the streams where they were saved."""
        # If several loaders continue, the last one restores the streams for good, because the first step follows.
        restores = tracked.loaded_epoch == epoch and not self._has_stepped
        if restores and not tracked.is_repeated and self._streams.are_drawn_from:
            guard.told(DRAWN)
        self._framework.deactivate(tracked.loader)  # of a loop that was left in an earlier epoch
        continues = tracked.loaded_epoch == epoch
        iterator = tracked.begin(epoch)
        if continues:
            iterator = self._framework.batches_left(tracked.loader, iterator)
        ahead = self._framework.fetches_ahead
        if restores and (tracked.position.kind == "counted" or not ahead):
            # The loader has fetched all batches that it had fetched when the streams were saved. The next fetch may
            # draw from the streams.
            restores = False
            self._streams.restore()
        while limit is None or tracked.num_handed_out < limit:
            guard.request()
            if self._is_over() or (batch := tracked.fetch(iterator, ahead=ahead)) is MISSING:
                break
            if restores:  # by now the loader has fetched the same batches as when the streams were saved
                restores = False
                self._streams.restore()
            tracked.num_yielded += 1
            if not is_active:
                self._framework.deactivate(tracked.loader)
            if tracked.num_handed_out == limit:
                self._framework.end_window(tracked.loader)
            yield batch
        else:
            guard.request()  # of a batch that does not come, after the last step
        if restores:  # no batch was left, so the code after the loop runs again and draws the same numbers
            self._streams.restore()

    def _repeat(self, index: int, guard: LoopGuard) -> Generator[Any]:
        """Yield the batches of one loader without an end. A later iterator continues where this one was left."""
        if index not in self._endless:
            self._endless[index] = self._passes(index, guard)
        while not self._is_over():
            batch = next(self._endless[index], MISSING)
            if batch is MISSING:
                return
            tracked = self._last_yielded is not None and self._tracked[self._last_yielded]
            if not tracked or tracked.is_repeated:
                self._last_yielded = index
            self._num_yielded += 1
            guard.hand_out(index)
            yield batch

    def _passes(self, index: int, guard: LoopGuard) -> Generator[Any]:
        self.epochs.enter(self.epochs.present)
        tracked = self._tracked[index]
        number = tracked.loaded_epoch or 0
        while True:
            # An endless loader ends no window of accumulation, so it is not active.
            yield from self._fetch(tracked, number, guard, None, is_active=False)
            if tracked.num_handed_out == 0 and not self._is_over():
                raise ConfigError("a loader without batches cannot be repeated: give it a data set that has samples")
            if self._is_over():
                return
            number += 1

    def finish(self) -> None:
        """Let the training end here. Unless the epochs have ended, the next process continues in this one."""
        for tracked in self._tracked.values():
            if self.epochs.have_ended:
                tracked.give_up_rest()
            else:
                tracked.forget_left()

    def mark_step(self) -> None:
        """Count all yielded batches as trained on, because an optimizer step is done."""
        self._has_stepped = True
        self.epochs.is_cut_short = False
        self._last_stepped = self._last_yielded
        for tracked in self._tracked.values():
            if tracked.begun_epoch is not None:
                tracked.confirm_left(self._num_yielded)
                tracked.mark_step()

    def numbers(self) -> tuple[int, ...]:
        """Return the epoch, and number, epoch and trained batches of each loader. It takes a microsecond."""
        used = ((index, tracked) for index, tracked in self._tracked.items() if tracked.state_dict() is not None)
        loaders = sorted((index, tracked.position.epoch, tracked.num_trained) for index, tracked in used)
        return (self.epochs.present, *(number for numbers in loaders for number in numbers))

    def state_dict(self) -> dict[str, Any]:
        """Return the present epoch, and the positions of all loaders after the last step."""
        states = {str(index): tracked.state_dict() for index, tracked in self._tracked.items()}
        loaders = {index: state for index, state in states.items() if state is not None}
        ended = {"ended": True} if self.epochs.is_cut_short else {}
        return {"epoch": self._epoch_of_last_step, "last": self._last_stepped, "loaders": loaders, **ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore the epoch and all positions.

        Raises:
            ValueError: The program has fewer loaders than were trained on.
        """
        num_loaders, words = len(self._framework.loaders), self._framework.words
        for index in map(int, state["loaders"]):
            if index >= num_loaders:
                raise ValueError(f"loader {index} was trained on, and only {num_loaders} are {words.loaders_are} now")
            self._track(index).load_state_dict(state["loaders"][str(index)])
        self.epochs.load(state["epoch"], is_cut_short=bool(state.get("ended")))
        self._last_stepped = self._last_yielded = state["last"]

    @property
    def _epoch_of_last_step(self) -> int:
        """The present epoch, or an earlier one of which batches still wait for a step."""
        waiting = [
            tracked.begun_epoch
            for tracked in self._tracked.values()
            if tracked.is_ahead and not tracked.is_repeated and tracked.left_epoch != tracked.begun_epoch
        ]
        return min([self.epochs.present, *(epoch for epoch in waiting if epoch is not None)])

    def _track(self, index: int) -> TrainingLoader:
        if index not in self._tracked:
            loader = self._framework.loaders[index]
            self._tracked[index] = TrainingLoader(loader, self._framework.world_size, self._fast_forward)
        return self._tracked[index]


def _num_left(loader: Any, num_before: int, limit: int | None) -> int | None:
    """Return the number of batches after the first *num_before*, of *limit* at most. None if it is unknown."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return None
    return max(0, (length if limit is None else min(limit, length)) - num_before)


def _then(batches: Generator[Any], fence: Callable[[], None]) -> Generator[Any]:
    try:
        yield from batches
    finally:
        fence()


def _give_own_generator(plain: Any) -> None:
    """
    Let a loader that is not tracked take the seed of its workers from a generator of its own.

    Most loaders draw one such seed with every iterator. Persistent workers are made once per process, and
    torchdata's loader has made its first iterator when Accelerate asked for its state. So a resumed process would draw
    from torch's stream more or less often than a training that was never interrupted.
    """
    if (getattr(plain, "persistent_workers", False) or hasattr(plain, "state_dict")) and plain.generator is None:
        plain.generator = torch.Generator().manual_seed(torch.default_generator.initial_seed())
