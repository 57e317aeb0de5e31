"""The order of the samples of an epoch, and the position of training in it, for any number of replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
import torch.distributed
from torch.utils.data.distributed import DistributedSampler

from ..errors import ConfigError
from .grouped import GroupedByLength
from .internals import accelerate_deals_out
from .rng import mixed_seed


class ElasticSampler(DistributedSampler[int]):
    """
    Deal out the samples of an epoch so that training can stop anywhere and continue with any number of replicas.

    The global order of an epoch is a permutation that depends on the seed and the epoch alone. The state is the
    number of samples of that order that all replicas together have trained on. It does not depend on the number of
    replicas. After these samples replica *rank* of *world* gets every *world*-th sample::

        order = randperm(num_samples), seeded with BLAKE2b(seed, epoch)
        this replica: order[consumed + rank :: world]

    All replicas get the same number of samples. If the rest of the order does not divide, it is padded with samples
    from the beginning of the order, or, with *drop_last*, its last samples are dropped. Both change the end of the
    order alone. So after a resume exactly the tail of the uninterrupted epoch is left. Apart from the padding every
    sample is seen once per epoch, whatever the numbers of replicas were.

    The loop does the counting: :meth:`load_state_dict` and :meth:`set_epoch` set :attr:`consumed`, and iterating
    never does, because workers fetch samples long before training sees them.

    It is a ``DistributedSampler``, because Lightning replaces other samplers by its own.
    """

    def __init__(
        self,
        dataset_or_length: Sized | int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        """
        Deal out *dataset_or_length*.

        Args:
            dataset_or_length: The data set, or its number of samples.
            seed: Any integer, equal on every replica.
            shuffle: Permute the samples. Otherwise the order is 0, 1, 2, ...
            drop_last: Drop the samples that do not divide over the replicas, instead of padding.
            num_replicas: Number of replicas that share an epoch. If None, torch.distributed is asked at every use,
                and the number is 1 until it is initialized. It is 1 as well if there is an ``Accelerator``, which
                deals the samples out itself. Give both or neither of this and *rank*.
            rank: Number of this replica, from 0.

        Raises:
            ConfigError: *num_replicas* and *rank* do not fit together.
        """
        # DistributedSampler.__init__ is not called, because it asks torch.distributed for the world size, and
        # Lightning initializes torch.distributed after it has built the loaders.
        self.dataset: Any = dataset_or_length
        if isinstance(dataset_or_length, int):
            self.dataset = range(dataset_or_length)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.consumed = 0
        self.grouped: GroupedByLength | None = None
        """Sorts the permutation by the lengths of the samples, if it is set."""
        self._replica: tuple[int, int] | None = None
        self._multiple_of = 1
        if num_replicas is not None and rank is not None:
            self.bind(num_replicas=num_replicas, rank=rank)
        elif num_replicas is not None or rank is not None:
            raise ConfigError(f"num_replicas={num_replicas} and rank={rank}: give both of them, or neither")

    def bind(self, *, num_replicas: int, rank: int, multiple_of: int = 1) -> None:
        """
        Fix the number of this replica instead of asking torch.distributed.

        Hosts that deal batches out themselves call it. Accelerate gives whole batches of the *global* order to its
        processes in turn, so there is one replica for the sampler. If the batches do not divide, Accelerate repeats
        those at the beginning of *this iteration*, which after a resume is the middle of the epoch. It never does so
        if the sampler yields a multiple of what all processes take in one step.

        Args:
            num_replicas: Number of replicas that share an epoch.
            rank: Number of this replica, from 0.
            multiple_of: Pad (or drop) until every replica gets a multiple of this many samples.

        Raises:
            ConfigError: *rank*, *num_replicas* or *multiple_of* is out of range.
        """
        if not 0 <= rank < num_replicas:
            raise ConfigError(f"rank={rank} must be at least 0 and below num_replicas={num_replicas}")
        if multiple_of < 1:
            raise ConfigError(f"multiple_of={multiple_of} must be at least 1")
        self._replica = (num_replicas, rank)
        self._multiple_of = multiple_of

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of replicas that share an epoch, as far as is known now."""
        return self._where()[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Number of this replica, as far as is known now."""
        return self._where()[1]

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Number of samples of a full epoch over all replicas, padding included."""
        return self._even(len(self.dataset))

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Number of samples of a full epoch on this replica, padding included."""
        return self.total_size // self.num_replicas

    @property
    def remaining(self) -> int:
        """Number of samples that the next iteration yields over all replicas, padding included."""
        return self._even(len(self.dataset) - self.consumed)

    def __len__(self) -> int:
        """
        Return :attr:`num_samples`, the size of the full epoch, even after a part of it is consumed.

        Lightning compares it with a restored batch counter, which counts from the beginning of the epoch.
        """
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Yield the samples of this replica from :attr:`consumed` to the end of the epoch. Changes no state."""
        num_replicas, rank = self._where()
        positions = self.consumed + rank + num_replicas * torch.arange(self.remaining // num_replicas)
        # The padding: after its end the order begins again.
        samples: list[int] = self._order()[positions % max(len(self.dataset), 1)].tolist()
        return iter(samples)

    def set_epoch(self, epoch: int) -> None:
        """
        Go to the beginning of *epoch*, unless it is the present one.

        For the present epoch it does nothing, because Lightning sets the epoch again after a resume, when the
        iterator exists already.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next iteration and the settings that it depends on, as plain numbers."""
        state = {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_samples": len(self.dataset),
            "epoch": self.epoch,
            "consumed": self.consumed,
        }
        return state if self.grouped is None else state | {"grouped": self.grouped.name}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Restore the position of the next iteration, on any number of replicas.

        Raises:
            ConfigError: The position belongs to another order, because the seed, ``shuffle``, the number of samples or
                their lengths were different.
        """
        here = self.state_dict()
        for name in ("seed", "shuffle", "num_samples", "grouped"):
            now, before = here.get(name), state_dict.get(name)
            if now != before:
                raise ConfigError(
                    f"{name}={now} differs from {name}={before} in the checkpoint, so the "
                    f"position saved there means other samples. Use the same data and settings as before, or "
                    f"start a new run"
                )
        self.epoch = state_dict["epoch"]
        self.consumed = state_dict["consumed"]

    def _where(self) -> tuple[int, int]:
        if self._replica is not None:
            return self._replica
        if accelerate_deals_out():  # what it prepares is the global order, and its length that of all ranks together
            return 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def _even(self, count: int) -> int:
        """Return *count* rounded so that all replicas get the same: up, or down with ``drop_last``."""
        unit = self._where()[0] * self._multiple_of
        return (count if self.drop_last else count + unit - 1) // unit * unit

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(mixed_seed(b"epoch order", self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        return order if self.grouped is None else self.grouped(order)
