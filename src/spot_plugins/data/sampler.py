"""The order of the samples of an epoch, and where training stands in it, for any number of replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
import torch.distributed
from torch.utils.data.distributed import DistributedSampler

from ..errors import ConfigError
from .rng import mixed_seed


class ElasticSampler(DistributedSampler[int]):
    """
    Deal out the samples of an epoch so that training can stop anywhere and go on with any number of replicas.

    The global order of an epoch is a permutation that depends on the seed and the epoch alone. The state is
    how many samples of that order all replicas together have trained on; nothing in it knows how many
    replicas there were. From there on replica *rank* of *world* gets every *world*-th sample::

        order = randperm(num_samples), seeded with BLAKE2b(seed, epoch)
        this replica: order[consumed + rank :: world]

    All replicas get the same number. When the rest does not divide, it is padded with samples from the
    beginning of the same epoch's order (or its last few samples are dropped, with *drop_last*): both depend
    on the end of the order only, so what is left after a resume is exactly the tail of the uninterrupted
    epoch, and apart from that padding every sample is seen once per epoch, whatever the numbers of replicas
    along the way.

    Counting is up to the loop (:attr:`consumed` is set by :meth:`load_state_dict` and :meth:`set_epoch`,
    never by iterating): workers fetch samples long before training sees them, if it ever does.

    It is a ``DistributedSampler`` so that Lightning, which replaces other samplers by its own, leaves it
    alone.
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
            dataset_or_length: What to draw from, or how many samples it has.
            seed: Any integer; the same on every replica.
            shuffle: Whether to permute; else the order is 0, 1, 2, ...
            drop_last: Drop the samples that do not divide over the replicas, instead of padding.
            num_replicas: How many replicas share an epoch. None: what torch.distributed says when it is
                asked, or 1 while it is not initialized. Give both or neither of this and *rank*.
            rank: Which of them this one is.

        Raises:
            ConfigError: *num_replicas* and *rank* do not fit together.
        """
        # DistributedSampler.__init__ is not called: it asks torch.distributed for the world size, which
        # Lightning starts only after it has built the loaders.
        self.dataset: Any = dataset_or_length
        if isinstance(dataset_or_length, int):
            self.dataset = range(dataset_or_length)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.consumed = 0
        self._replica: tuple[int, int] | None = None
        self._multiple_of = 1
        if num_replicas is not None and rank is not None:
            self.bind(num_replicas=num_replicas, rank=rank)
        elif num_replicas is not None or rank is not None:
            raise ConfigError(f"num_replicas={num_replicas} and rank={rank}: give both of them, or neither")

    def bind(self, *, num_replicas: int, rank: int, multiple_of: int = 1) -> None:
        """
        Fix which replica this is, instead of asking torch.distributed.

        For hosts that deal batches out themselves: Accelerate hands whole batches of the *global* order to
        its processes in turn, so for it there is one replica. When the batches do not come out even, it fills
        up with those at the beginning of *this iteration*, which after a resume is the middle of the epoch; a
        sampler whose rest is already a multiple of what all processes take in one step never gets it there.

        Args:
            num_replicas: How many replicas share an epoch.
            rank: Which of them this one is, from 0.
            multiple_of: Pad (or drop) until every replica gets a multiple of this many samples.

        Raises:
            ConfigError: There can be no such replica.
        """
        if not 0 <= rank < num_replicas:
            raise ConfigError(f"rank={rank} must be at least 0 and below num_replicas={num_replicas}")
        if multiple_of < 1:
            raise ConfigError(f"multiple_of={multiple_of} must be at least 1")
        self._replica = (num_replicas, rank)
        self._multiple_of = multiple_of

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """How many replicas share an epoch, as far as is known now."""
        return self._where()[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Which of them this one is, as far as is known now."""
        return self._where()[1]

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Samples of a full epoch over all replicas, padding included."""
        return self._even(len(self.dataset))

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Samples of a full epoch on this replica, padding included."""
        return self.total_size // self.num_replicas

    @property
    def remaining(self) -> int:
        """Samples that the next iteration yields over all replicas, padding included."""
        return self._even(len(self.dataset) - self.consumed)

    def __len__(self) -> int:
        """
        Return :attr:`num_samples`: the full epoch, however much of it is consumed.

        Lightning compares it with a batch counter that it restores, which counts from the epoch's beginning.
        """
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Yield this replica's samples from :attr:`consumed` to the epoch's end. Changes nothing."""
        num_replicas, rank = self._where()
        positions = self.consumed + rank + num_replicas * torch.arange(self.remaining // num_replicas)
        # Behind its end the order begins anew: that is the padding.
        samples: list[int] = self._order()[positions % max(len(self.dataset), 1)].tolist()
        return iter(samples)

    def set_epoch(self, epoch: int) -> None:
        """
        Go to the beginning of *epoch*, unless it is the present one.

        For the present one it does nothing: Lightning sets the epoch once more after a resume, when the
        iterator already exists.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the next iteration begins, and what that depends on, as plain numbers."""
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_samples": len(self.dataset),
            "epoch": self.epoch,
            "consumed": self.consumed,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Let the next iteration begin where *state_dict* says, on any number of replicas.

        Raises:
            ConfigError: It was made with another seed, another ``shuffle`` or for another number of samples: the
                order it counts in is not this one.
        """
        here = self.state_dict()
        for name in ("seed", "shuffle", "num_samples"):
            if state_dict[name] != here[name]:
                raise ConfigError(
                    f"{name}={here[name]} differs from {name}={state_dict[name]} in the checkpoint, so the "
                    f"position saved there means other samples. Use the same data and settings as before, or "
                    f"start a new run"
                )
        self.epoch = state_dict["epoch"]
        self.consumed = state_dict["consumed"]

    def _where(self) -> tuple[int, int]:
        if self._replica is not None:
            return self._replica
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def _even(self, count: int) -> int:
        """Return *count* rounded to what all replicas can share, up or, with ``drop_last``, down."""
        unit = self._where()[0] * self._multiple_of
        return (count if self.drop_last else count + unit - 1) // unit * unit

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(mixed_seed(b"epoch order", self.seed, self.epoch))
        return torch.randperm(len(self.dataset), generator=generator)
