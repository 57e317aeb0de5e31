"""The training loader of a ``Trainer``, and the batches of an epoch as its loop takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import IterableDataset
from transformers import Trainer

from ..accelerate.hook import SpotHook
from ..data import GroupedByLength, elastic_loader
from ..data.rng import borrowed_streams, seed_streams
from . import internals

STRATEGIES: Final = ("random", "sequential", "group_by_length")
"""The values of ``train_sampling_strategy`` whose order any number of ranks can continue."""


def has_own_loader(trainer: Trainer) -> bool:
    """Return True if the program decides itself in which order the samples come."""
    args = trainer.args
    if args.train_sampling_strategy not in STRATEGIES or isinstance(trainer.train_dataset, IterableDataset):
        return True
    own = type(trainer).__mro__[2]  # without the class that the callback has put before it, and ours
    names = internals.LOADER_METHODS
    return any(name in vars(trainer) or getattr(own, name) is not getattr(Trainer, name) for name in names)


def elastic(trainer: Trainer, samples_per_step: int) -> Any:
    """
    Return the training loader that the trainer would make, with an order that any number of ranks can continue.

    Args:
        trainer: The trainer.
        samples_per_step: Samples of one step over all ranks and batches, which ``group_by_length`` groups.
    """
    args = trainer.args
    data, collate = internals.dataset_and_collator(trainer)
    seed = args.seed if args.data_seed is None else args.data_seed
    loader = elastic_loader(
        data,
        batch_size=internals.batch_size(trainer),
        seed=seed,
        shuffle=args.train_sampling_strategy != "sequential",
        drop_last=args.dataloader_drop_last,
        num_workers=args.dataloader_num_workers,
        collate_fn=collate,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
    )
    if args.train_sampling_strategy == "group_by_length":
        # Reading all samples may draw random numbers, which must be equal on all ranks and in all processes of the run.
        with borrowed_streams():
            seed_streams(b"lengths", seed)
            lengths = internals.lengths_of_samples(trainer)
        sampler: Any = loader.sampler
        sampler.grouped = GroupedByLength(lengths, samples_per_step)
    return trainer.accelerator.prepare(loader)


class EpochBatches:
    """
    The batches of one epoch that are left, to a training loop that wants a loader.

    Args:
        hook: The hook of the training.
        loader: The prepared loader.
    """

    def __init__(self, hook: SpotHook, loader: Any) -> None:
        self._hook = hook
        self._loader = loader
        self._skipped = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = self._hook.batches(self._loader)
        for _ in range(self._skipped):
            next(batches, None)
        return batches

    def left(self, number: int) -> EpochBatches:
        """Return the batches of a resumed epoch. The hook leaves out those that are done."""
        return self

    def after(self, number: int) -> EpochBatches:
        """Return the batches after the first *number*, which a checkpoint of the trainer has trained on."""
        self._skipped = number
        return self
