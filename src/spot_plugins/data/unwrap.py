"""Access to what is inside a loader, whichever host has wrapped it. It looks at attributes and imports no host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


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
