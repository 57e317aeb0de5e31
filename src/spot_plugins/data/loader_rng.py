"""Random numbers that a loader draws for itself, for orders and seeds of workers, made repeatable within an epoch."""

from __future__ import annotations

from typing import Any, Final

import torch

from .rng import mixed_seed
from .unwrap import plain_loader, samplers

_SEEDS: Final[dict[int, int]] = {}
"""
The seed of a loader from which each seed of a generator was mixed. Lightning may set one loader up several times.

The key is no generator, because torch 2.6 has no weak references to generators.
"""


class LoaderGenerators:
    """
    Random generators for a loader and its shuffling samplers that depend on a seed and the epoch alone.

    torch's ``RandomSampler`` draws its seed from the stream of the process when the first batch is fetched. A
    ``DataLoader`` draws a seed for its workers with every iterator. Neither can be repeated after training has drawn
    from the same stream. A resume makes one more iterator, so it would also shift that stream.
    """

    seeds: list[int]
    """Part of a position, because a script that sets no seed has other seeds in its next process."""

    def __init__(self, loader: Any) -> None:
        found = (plain_loader(loader), *samplers(loader))
        self._holders = [
            holder for holder in found if isinstance(getattr(holder, "generator", self), torch.Generator | None)
        ]
        self.seeds = [_seed_of(holder) for holder in self._holders]
        for holder, seed in zip(self._holders, self.seeds, strict=True):
            # Accelerate copies the state of this generator from rank 0 to the other ranks, so it must stay the same
            # object.
            shared = getattr(loader, "synchronized_generator", None)
            if shared is None or holder.generator is not shared:
                holder.generator = torch.Generator()
                _mix(holder.generator, seed)

    def begin(self, epoch: int, number: int = 0) -> None:
        """Seed all generators for the pass *number* over the loader in *epoch*, counted from 0."""
        which = (epoch, number) if number else (epoch,)
        for index, (holder, seed) in enumerate(zip(self._holders, self.seeds, strict=True)):
            if hasattr(holder, "initial_seed"):
                holder.initial_seed = seed
            _mix(holder.generator, seed, *which, index)


def _mix(generator: torch.Generator, seed: int, *which: int) -> None:
    """Seed *generator* for what *which* tells, and remember that it stands for *seed*."""
    mixed = mixed_seed(b"loader", seed, *which)
    _SEEDS[mixed] = seed
    generator.manual_seed(mixed)


def _seed_of(holder: Any) -> int:
    """Return a seed that is equal in the next run of a script, and different if the script sets another seed."""
    # Accelerate's SeedableRandomSampler, which seeds its generator itself.
    if hasattr(holder, "initial_seed"):
        return int(holder.initial_seed)
    generator: torch.Generator = torch.default_generator if holder.generator is None else holder.generator
    initial = generator.initial_seed()
    return _SEEDS.get(initial, initial)
