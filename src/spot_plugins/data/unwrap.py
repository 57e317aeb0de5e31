"""Access to what is inside a loader, whichever host has wrapped it. It looks at attributes and imports no host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset


def plain_loader(loader: Any) -> Any:
    """Return the ``DataLoader`` that Accelerate keeps inside a prepared one, or *loader* itself."""
    return getattr(loader, "base_dataloader", loader)


def batch_samplers(loader: Any) -> Iterator[Any]:
    """Yield the batch samplers of *loader*, the outermost first, because Accelerate nests them."""
    found = getattr(loader, "batch_sampler", None)
    while found is not None:
        yield found
        found = getattr(found, "batch_sampler", None)


def samplers(loader: Any) -> Iterator[Any]:
    """Yield the samplers that may decide the order: that of *loader* and those of its batch samplers, maybe twice."""
    for holder in (loader, *batch_samplers(loader)):
        sampler = getattr(holder, "sampler", None)
        if sampler is not None:
            yield sampler


def set_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch(epoch)`` of *loader* and its samplers, where there is one. The data set is left out."""
    for part in (loader, *samplers(loader)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def samples_per_step(loader: Any, world_size: int) -> int | None:
    """Return the number of samples in one batch of every rank together, or None if batches differ in size."""
    nested = list(batch_samplers(loader))
    batch_size = getattr(nested[-1] if nested else plain_loader(loader), "batch_size", None)
    if not isinstance(batch_size, int):
        return None
    # Accelerate either deals out whole batches or lets each process take its part of every batch.
    splits = any(getattr(part, "split_batches", False) for part in (loader, *nested))
    return batch_size if splits else batch_size * world_size


def streams(loader: Any) -> bool:
    """Return True if the samples of *loader* come one after another and have no index."""
    return isinstance(getattr(plain_loader(loader), "dataset", None), IterableDataset)


def num_samples(loader: Any) -> int | None:
    """Return the size of the data set. None if unknown; a stream only estimates its length."""
    dataset = getattr(plain_loader(loader), "dataset", None)
    if dataset is None or streams(loader):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None
