"""Making what a loader draws for itself, orders and seeds of workers, repeatable in mid-training."""

from __future__ import annotations

from typing import Any

import torch

from .rng import mixed_seed
from .unwrap import plain_loader, samplers


class LoaderGenerators:
    """
    Generators of its own for a loader and its shuffling samplers, that depend on a seed and the epoch alone.

    torch's ``RandomSampler`` draws its seed from the process' stream at the moment when the first batch is
    fetched, and a ``DataLoader`` draws one for its workers with every iterator: neither can be repeated once
    training has drawn from the same stream, and a resume, which makes an iterator more, would shift that
    stream.
    """

    seeds: list[int]
    """With the epoch they decide everything. Part of a position: a script without a seed has others next time."""

    def __init__(self, loader: Any) -> None:
        found = (plain_loader(loader), *samplers(loader))
        self._holders = [
            holder for holder in found if isinstance(getattr(holder, "generator", self), torch.Generator | None)
        ]
        self.seeds = [_seed_of(holder) for holder in self._holders]
        for holder in self._holders:
            # Accelerate copies rank 0's state of this one to the other ranks: it must stay the same object.
            shared = getattr(loader, "synchronized_generator", None)
            if shared is None or holder.generator is not shared:
                holder.generator = torch.Generator()

    def begin(self, epoch: int) -> None:
        """Seed them for *epoch*."""
        for number, (holder, seed) in enumerate(zip(self._holders, self.seeds, strict=True)):
            if hasattr(holder, "initial_seed"):
                holder.initial_seed = seed
            holder.generator.manual_seed(mixed_seed(b"loader", seed, epoch, number))


def _seed_of(holder: Any) -> int:
    """Return what is the same when a script is run again, and another where a script sets another seed."""
    # Accelerate's SeedableRandomSampler, which seeds its generator itself.
    if hasattr(holder, "initial_seed"):
        return int(holder.initial_seed)
    generator: torch.Generator = torch.default_generator if holder.generator is None else holder.generator
    return generator.initial_seed()
