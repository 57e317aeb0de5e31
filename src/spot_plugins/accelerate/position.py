"""Where the training loop stands in its loaders, and the random streams that belong to this place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

from ..data import ElasticSampler, LoaderPosition, samplers, shield_workers
from ..data.unwrap import plain_loader
from ..errors import ConfigError
from ..state import RngPart, ShardedPart
from .prepared import prepared_loaders


class StreamsPart(ShardedPart):
    """
    The random streams of this process.

    They are restored at once and again, by :meth:`restore`, where the loop goes on: what comes between, such as
    the head of an epoch, may draw from them.
    """

    def __init__(self) -> None:
        self._part = RngPart()
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the streams as they are now."""
        return self._part.state_dict()

    def for_new_rank(self, state: dict[str, Any], rank: int) -> dict[str, Any]:
        """Return the streams with which a new *rank* begins."""
        return self._part.for_new_rank(state, rank)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the streams, and keep *state* for :meth:`restore`."""
        self._loaded = state
        self.restore()

    def restore(self) -> None:
        """Restore the streams again, if they were loaded at all."""
        if self._loaded is not None:
            self._part.load_state_dict(self._loaded)


class _TrackedLoader:
    """One loader that is trained on, and how far."""

    def __init__(self, loader: Any, world_size: int) -> None:
        self.loader = loader
        self.position = LoaderPosition(loader, world_size)
        self.num_trained = 0
        """Batches of its epoch that were trained on, also by earlier processes."""
        self.begun_epoch: int | None = None
        """The epoch of the iterator that this process made last."""
        self.loaded_epoch: int | None = None
        """The epoch of a restored position from which no iterator was made yet."""
        self.num_given = 0
        """Batches that the iterator has handed out."""
        self._num_before = 0
        self._at_step: dict[str, Any] | None = None

    def begin(self, epoch: int) -> Iterator[Any]:
        """Return an iterator of *epoch*, or of what is left of it."""
        self._num_before = self.num_trained if epoch == self.loaded_epoch else 0
        self.num_given = 0
        self.begun_epoch, self.loaded_epoch = epoch, None
        self.position.begin_epoch(epoch)
        self.mark()
        shield_workers(self.loader)
        iterator: Iterator[Any] = iter(self.loader)
        self.position.fast_forward(iterator)
        return iterator

    def mark(self) -> None:
        """All batches that were handed out are trained on now."""
        self.num_trained = self._num_before + self.num_given
        self._at_step = self.position.state_dict(self.num_given)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the place as of the last :meth:`mark`; None if it was never trained on."""
        return self._at_step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from *state* in the next iterator, if that is one of the same epoch."""
        self.position.load_state_dict(state)
        self.num_trained = self.position.batches_behind
        self.loaded_epoch = self.position.epoch
        self._at_step = state


class PositionPart:
    """
    The epoch, and how far each loader that was given to :meth:`batches` is trained on.

    Loaders are known by the order in which they were prepared. A batch counts when its optimizer step is done:
    one that is only handed out, or whose gradients are still being accumulated, is seen again after a resume.
    """

    def __init__(self, accelerator: Accelerator, streams: StreamsPart) -> None:
        self.epoch = 0
        """The epoch that is trained, or comes next."""
        self._accelerator = accelerator
        self._streams = streams
        self._tracked: dict[int, _TrackedLoader] = {}
        self._has_entered = False  # an epoch
        self._has_stepped = False
        self._last_given: int | None = None
        self._last: int | None = None  # the loader that gave the last batch of the last step

    def adopt_loaders(self) -> None:
        """Ready all prepared loaders, also those that will be gone through without :meth:`batches`."""
        for index, loader in enumerate(prepared_loaders(self._accelerator)):
            shield_workers(loader)
            _keep_off_the_streams(plain_loader(loader))
            # Accelerate deals out what an elastic sampler yields; unbound, that would deal it out as well.
            if any(isinstance(sampler, ElasticSampler) for sampler in samplers(loader)):
                self._track(index)

    @property
    def num_batches(self) -> int:
        """Batches of this epoch that were trained on, of the loader that gave the last one."""
        if self._last is None:
            return 0
        tracked = self._tracked[self._last]
        return tracked.num_trained if tracked.position.epoch == self.epoch else 0

    @property
    def used(self) -> bool:
        """Whether a batch was handed out, in whatever process life."""
        return self._last_given is not None

    def enter_epoch(self, epoch: int) -> None:
        """Training comes to *epoch*. Restored streams belong to its head, unless a loader goes on in the middle."""
        self.epoch = epoch
        if not self._has_entered:
            self._has_entered = True
            self._streams.restore()

    def batches(self, loader: Any) -> Iterator[Any]:
        """
        Return an iterator over what is left of the present epoch of *loader*.

        Raises:
            ConfigError: *loader* is not prepared.
            RuntimeError: It was gone through in this epoch already.
        """
        index = next((i for i, known in enumerate(prepared_loaders(self._accelerator)) if known is loader), None)
        if index is None:
            raise ConfigError(
                f"this {type(loader).__name__} is not prepared, so its place cannot be saved: pass what "
                f"accelerator.prepare(loader) returned"
            )
        if self._track(index).begun_epoch == self.epoch:
            raise RuntimeError(
                f"batches() was called twice with one loader in epoch {self.epoch}. Let every pass over the data be "
                f"an epoch of spot.epochs()"
            )
        return self._go_through(index)

    def _go_through(self, index: int) -> Iterator[Any]:
        self.enter_epoch(self.epoch)
        tracked = self._tracked[index]
        # Of several loaders the last one to go on restores the streams for good: then the first step begins.
        restores = tracked.loaded_epoch == self.epoch and not self._has_stepped
        iterator = tracked.begin(self.epoch)
        if restores and tracked.position.kind == "counted":
            # It was wound forward, and so has fetched what it had fetched when the streams were saved. What it
            # fetches next may draw from them.
            restores = False
            self._streams.restore()
        for batch in iterator:
            if restores:  # other loaders have now fetched again what was fetched then
                restores = False
                self._streams.restore()
            tracked.num_given += 1
            self._last_given = index
            yield batch
        if restores:  # nothing was left: what is behind the loop comes by again, and draws what it drew
            self._streams.restore()

    def mark_step(self) -> None:
        """An optimizer step is done: what was handed out is trained on."""
        self._has_stepped = True
        self._last = self._last_given
        for tracked in self._tracked.values():
            if tracked.begun_epoch is not None:
                tracked.mark()

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch of now, and the places of all loaders behind the last step."""
        states = {str(index): tracked.state_dict() for index, tracked in self._tracked.items()}
        loaders = {index: state for index, state in states.items() if state is not None}
        return {"epoch": self.epoch, "last": self._last, "loaders": loaders}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Take over all places.

        Raises:
            ValueError: A loader that was trained on is not prepared any more.
        """
        num_loaders = len(prepared_loaders(self._accelerator))
        for index in map(int, state["loaders"]):
            if index >= num_loaders:
                raise ValueError(f"loader {index} was trained on, and only {num_loaders} are prepared now")
            self._track(index).load_state_dict(state["loaders"][str(index)])
        self.epoch = state["epoch"]
        self._last = self._last_given = state["last"]

    def _track(self, index: int) -> _TrackedLoader:
        if index not in self._tracked:
            loader = prepared_loaders(self._accelerator)[index]
            self._tracked[index] = _TrackedLoader(loader, self._accelerator.num_processes)
        return self._tracked[index]


def _keep_off_the_streams(plain: Any) -> None:
    """
    Let a loader that is not tracked take the seed of its workers from a generator of its own.

    Not all draw one with every iterator: persistent workers are made once per process life, and torchdata's loader
    has made its first iterator when Accelerate asked for its state. So a resumed life would draw from torch's
    stream more or less often than one that was never interrupted.
    """
    if (getattr(plain, "persistent_workers", False) or hasattr(plain, "state_dict")) and plain.generator is None:
        plain.generator = torch.Generator().manual_seed(torch.default_generator.initial_seed())
