"""Positions in a loader whose order comes from an :class:`~spot_plugins.data.ElasticSampler`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from .loader_rng import LoaderGenerators
from .replayed import MISSING
from .sampler import ElasticSampler
from .unwrap import batch_samplers, set_epoch
from .where import Where


class Elastic:
    """Position of the sampler: the number of samples of the global order that all ranks have trained on."""

    kind = "elastic"

    def __init__(self, loader: Any, sampler: ElasticSampler, world_size: int) -> None:
        self._loader = loader
        self._sampler = sampler
        self._generators = LoaderGenerators(loader)
        self._batch_size, self._drop_last = _batching(loader)
        self._number = 0
        # Only one kind of Accelerate's loaders has a slice_fn: it reads on rank 0 and sends each rank its part.
        if world_size > 1 and hasattr(loader, "slice_fn"):
            raise ConfigError(
                "dispatch_batches=True lets rank 0 alone read the data, but an elastic sampler deals it out to "
                "all ranks. Set dispatch_batches=False in the DataLoaderConfiguration"
            )
        shard = next((found for found in batch_samplers(loader) if hasattr(found, "split_batches")), None)
        if shard is not None:  # Accelerate deals out batches of the global order
            step = self._batch_size if shard.split_batches else self._batch_size * shard.num_processes
            sampler.bind(num_replicas=1, rank=0, multiple_of=step)
            self._batch_size = step

    def begin(self, epoch: int, number: int) -> None:
        """Set the epoch. The sampler keeps its position if it is in that pass of that epoch already."""
        set_epoch(self._loader, epoch)
        if number != self._number:
            self._sampler.consumed = 0
        self._number = number
        self._generators.begin(epoch, number)

    def note_fetch(self, batches: int) -> None:
        """Do nothing, because the order depends on no stream."""

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Return the next batch of *iterator*, or :data:`MISSING`."""
        return next(iterator, MISSING)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Do nothing, because *iterator* begins at the position."""

    def after(self, batches: int) -> dict[str, Any]:
        """Return the state of the sampler, moved on by the samples of all ranks."""
        state = self._sampler.state_dict()
        # After the last batch every sample counts as consumed, also those that padding repeats or dropping leaves
        # out: another number of ranks could make one more batch of such a remainder.
        consumed = state["num_samples"] if self.ends_after(batches) else state["consumed"] + self._samples(batches)
        return {**state, "consumed": consumed}

    def progress(self, batches: int) -> int:
        """Return the number of samples of the epoch that were trained on."""
        return self._sampler.consumed + self._samples(batches)

    def ends_after(self, batches: int) -> bool:
        """Return True if this iterator yields no more than *batches* batches."""
        return batches >= self._batches(self._sampler.remaining)

    def num_done(self) -> int:
        """Count the batches from the end, because the last batch is the last one on any number of ranks."""
        return self._batches(self._sampler.total_size) - self._batches(self._sampler.remaining)

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Give the sampler its state, which is the same for any number of ranks."""
        self._sampler.load_state_dict(at)
        self._number = where.number

    def _batches(self, samples: int) -> int:
        """Return the number of batches of *samples*. An incomplete last batch counts unless it is dropped."""
        full, rest = divmod(samples, self._samples(1))
        return full + (rest > 0 and not self._drop_last)

    def _samples(self, batches: int) -> int:
        return batches * self._batch_size * self._sampler.num_replicas


def _batching(loader: Any) -> tuple[int, bool]:
    """Return the number of samples in one batch of the sampler, and True if an incomplete last batch is dropped."""
    nested = list(batch_samplers(loader))
    if not nested:
        return 1, False
    batch_size = getattr(nested[-1], "batch_size", None)
    if not isinstance(batch_size, int):
        raise ConfigError(
            f"batch_sampler={type(nested[-1]).__name__} has no fixed batch_size, so batches cannot be counted "
            f"in samples. Use spot_plugins.data.elastic_loader, or leave ElasticSampler out"
        )
    return batch_size, bool(getattr(nested[-1], "drop_last", False))
