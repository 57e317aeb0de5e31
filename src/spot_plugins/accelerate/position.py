"""The position of the training loop in its loaders, and the random streams that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

from ..data import ElasticSampler, LoaderPosition, samplers, shield_workers
from ..data.unwrap import plain_loader
from ..errors import ConfigError
from ..state import RngPart, ShardedPart
from . import internals


class StreamsPart(ShardedPart):
    """
    The random streams of this process.

    They are restored twice: on a resume, and by :meth:`restore` at the place where the loop continues. Code between
    the two, such as the head of an epoch, may draw from them.
    """

    def __init__(self) -> None:
        self._part = RngPart()
        self._loaded: dict[str, Any] | None = None

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


class _TrackedLoader:
    """One loader that is trained on, with its position."""

    def __init__(self, loader: Any, world_size: int) -> None:
        self.loader = loader
        self.position = LoaderPosition(loader, world_size)
        self.num_trained = 0
        """Batches of its epoch that were trained on, also by earlier processes."""
        self.begun_epoch: int | None = None
        """The epoch of the last iterator that this process made."""
        self.loaded_epoch: int | None = None
        """The epoch of a restored position, until an iterator is made from it."""
        self.num_yielded = 0
        """Batches that the iterator has yielded."""
        self._num_before = 0
        self._at_step: dict[str, Any] | None = None

    def begin(self, epoch: int) -> Iterator[Any]:
        """Return an iterator of *epoch*, or of what is left of it."""
        continues = epoch == self.loaded_epoch
        self._num_before = self.num_trained if continues else 0
        self.num_yielded = 0
        self.begun_epoch, self.loaded_epoch = epoch, None
        self.position.begin_epoch(epoch)
        self.mark_step()
        shield_workers(self.loader)
        iterator: Iterator[Any] = iter(self.loader)
        self.position.fast_forward(iterator)
        return internals.batches_left(self.loader, iterator) if continues else iterator

    def mark_step(self) -> None:
        """Count all batches that were yielded as trained on."""
        self.num_trained = self._num_before + self.num_yielded
        self._at_step = self.position.state_dict(self.num_yielded)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position at the last :meth:`mark_step`, or None if the loader was never trained on."""
        return self._at_step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator continue from *state*, if it is one of the same epoch."""
        self.position.load_state_dict(state)
        self.num_trained = self.position.num_done
        self.loaded_epoch = self.position.epoch
        self._at_step = state


class PositionPart:
    """
    The epoch, and the position in each loader that :meth:`batches` was called with.

    A loader is known by its number in the order of ``prepare``. A batch counts once its optimizer step is done. So a
    resumed process sees a batch again if it was only yielded, or if its gradients were still being accumulated.
    """

    def __init__(self, accelerator: Accelerator, streams: StreamsPart) -> None:
        self.epoch = 0
        """The epoch that is trained now, or comes next."""
        self._accelerator = accelerator
        self._streams = streams
        self._tracked: dict[int, _TrackedLoader] = {}
        self._has_entered = False  # an epoch
        self._has_stepped = False
        self._last_yielded: int | None = None  # number of the loader that yielded the last batch
        self._last_stepped: int | None = None  # the same at the last step

    def adopt_loaders(self) -> None:
        """Prepare all loaders, also those that are used without :meth:`batches`."""
        for index, loader in enumerate(internals.loaders(self._accelerator)):
            shield_workers(loader)
            _give_own_generator(plain_loader(loader))
            # Accelerate deals out what an elastic sampler yields, so the sampler must be bound to one replica. Else
            # the samples would be dealt out twice.
            if any(isinstance(sampler, ElasticSampler) for sampler in samplers(loader)):
                self._track(index)

    @property
    def num_batches(self) -> int:
        """Batches of this epoch that were trained on, of the loader that yielded the last one."""
        if self._last_stepped is None:
            return 0
        tracked = self._tracked[self._last_stepped]
        return tracked.num_trained if tracked.position.epoch == self.epoch else 0

    @property
    def used(self) -> bool:
        """True if :meth:`batches` has yielded a batch, in this or an earlier process."""
        return self._last_yielded is not None

    def begun_loaders(self) -> list[Any]:
        """Return the loaders that :meth:`batches` was called with, or all loaders as long as it was not called."""
        begun = [tracked.loader for tracked in self._tracked.values() if tracked.begun_epoch is not None]
        return begun or internals.loaders(self._accelerator)

    def enter_epoch(self, epoch: int) -> None:
        """
        Let the training come to *epoch*.

        At the first epoch of the process this restores the streams for the code at its head. A loader that continues
        in the middle of the epoch restores them once more.
        """
        self.epoch = epoch
        if not self._has_entered:
            self._has_entered = True
            self._streams.restore()

    def batches(self, loader: Any) -> Iterator[Any]:
        """
        Return an iterator over what is left of the present epoch of *loader*.

        Raises:
            ConfigError: *loader* is not prepared.
            RuntimeError: *loader* was iterated in this epoch already.
        """
        prepared = internals.loaders(self._accelerator)
        index = next((number for number, known in enumerate(prepared) if known is loader), None)
        if index is None:
            raise ConfigError(
                f"this {type(loader).__name__} is not prepared, so its position cannot be saved. Pass the loader that "
                f"accelerator.prepare(loader) returned"
            )
        if self._track(index).begun_epoch == self.epoch:
            raise RuntimeError(
                f"batches() was called twice with one loader in epoch {self.epoch}. Let every pass over the data be "
                f"an epoch of spot.epochs()"
            )
        return self._iterate(index)

    def _iterate(self, index: int) -> Iterator[Any]:
        self.enter_epoch(self.epoch)
        tracked = self._tracked[index]
        # If several loaders continue, the last one restores the streams for good, because the first step follows.
        restores = tracked.loaded_epoch == self.epoch and not self._has_stepped
        iterator = tracked.begin(self.epoch)
        if restores and tracked.position.kind == "counted":
            # The loader has fetched again all batches that it had fetched when the streams were saved. The next
            # fetch may draw from the streams.
            restores = False
            self._streams.restore()
        for batch in iterator:
            if restores:  # by now other kinds of loaders have fetched the same batches as when the streams were saved
                restores = False
                self._streams.restore()
            tracked.num_yielded += 1
            self._last_yielded = index
            yield batch
        if restores:  # no batch was left, so the code after the loop runs again and draws the same numbers
            self._streams.restore()

    def mark_step(self) -> None:
        """Count all yielded batches as trained on, because an optimizer step is done."""
        self._has_stepped = True
        self._last_stepped = self._last_yielded
        for tracked in self._tracked.values():
            if tracked.begun_epoch is not None:
                tracked.mark_step()

    def numbers(self) -> tuple[int, ...]:
        """Return the epoch, and number, epoch and trained batches of each loader. It takes a microsecond."""
        used = ((index, tracked) for index, tracked in self._tracked.items() if tracked.state_dict() is not None)
        loaders = sorted((index, tracked.position.epoch, tracked.num_trained) for index, tracked in used)
        return (self.epoch, *(number for numbers in loaders for number in numbers))

    def state_dict(self) -> dict[str, Any]:
        """Return the present epoch, and the positions of all loaders after the last step."""
        states = {str(index): tracked.state_dict() for index, tracked in self._tracked.items()}
        loaders = {index: state for index, state in states.items() if state is not None}
        return {"epoch": self.epoch, "last": self._last_stepped, "loaders": loaders}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restore the epoch and all positions.

        Raises:
            ValueError: A loader that was trained on is not prepared any more.
        """
        num_loaders = len(internals.loaders(self._accelerator))
        for index in map(int, state["loaders"]):
            if index >= num_loaders:
                raise ValueError(f"loader {index} was trained on, and only {num_loaders} are prepared now")
            self._track(index).load_state_dict(state["loaders"][str(index)])
        self.epoch = state["epoch"]
        self._last_stepped = self._last_yielded = state["last"]

    def _track(self, index: int) -> _TrackedLoader:
        if index not in self._tracked:
            loader = internals.loaders(self._accelerator)[index]
            self._tracked[index] = _TrackedLoader(loader, self._accelerator.num_processes)
        return self._tracked[index]


def _give_own_generator(plain: Any) -> None:
    """
    Let a loader that is not tracked take the seed of its workers from a generator of its own.

    Most loaders draw one such seed with every iterator. Persistent workers are made once per process, and
    torchdata's loader has made its first iterator when Accelerate asked for its state. So a resumed process would draw
    from torch's stream more or less often than a training that was never interrupted.
    """
    if (getattr(plain, "persistent_workers", False) or hasattr(plain, "state_dict")) and plain.generator is None:
        plain.generator = torch.Generator().manual_seed(torch.default_generator.initial_seed())
