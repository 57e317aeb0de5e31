"""Where one training loader stands: what hosts save and restore, with the same code for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..errors import ConfigError
from .counted import Counted
from .loader_rng import LoaderGenerators
from .sampler import ElasticSampler
from .stateful import Stateful
from .unwrap import batch_samplers, plain_loader, samplers, set_epoch


class LoaderPosition:
    """
    The position of training in one loader, to be saved at any batch and restored in another process.

    Which :attr:`kind` it is shows in the loader:

    - ``elastic``: there is an :class:`~spot_plugins.data.ElasticSampler` in it. Exact, on any number of
      ranks.
    - ``stateful``: it has ``state_dict`` and ``load_state_dict``, as torchdata's ``StatefulDataLoader`` has,
      also inside Accelerate's. Restored as it is, on the same number of ranks and workers.
    - ``counted``: anything else that can be iterated. The batches that were trained on are fetched again and
      thrown away, with a warning that names the cost.

    A host makes it once, after its own wrapping of the loader, and then for every epoch calls::

        position.begin_epoch(epoch)
        iterator = iter(loader)
        position.fast_forward(iterator)
        ...                                 # train on n batches of this iterator
        state = position.state_dict(n)

    and in a later process :meth:`load_state_dict` before the first :meth:`begin_epoch`. If :attr:`epoch_done`
    then, nothing is left of :attr:`epoch` and an iterator of it yields nothing; the host may as well begin
    the next one. Batches are counted from where this process' iterator began, without those of earlier
    processes.

    Making iterators draws nothing from the process' random streams, so a host may restore those before or
    after; but not between :meth:`begin_epoch` and :meth:`fast_forward`, when they can be set back to where
    the epoch began.
    """

    def __init__(self, loader: Any, world_size: int) -> None:
        """
        Look into *loader*, and give it random generators of its own.

        Args:
            loader: One loader, as the host iterates it.
            world_size: Ranks that read their share of it.

        Raises:
            ConfigError: The loader holds an elastic sampler in a way that leaves its position unknown.
        """
        self._world_size = world_size
        self._epoch = 0
        self._epoch_done = False
        self._way = _way(loader, world_size)

    @property
    def kind(self) -> str:
        """``elastic``, ``stateful`` or ``counted``."""
        return self._way.kind

    @property
    def epoch(self) -> int:
        """The epoch that was begun or loaded last."""
        return self._epoch

    @property
    def epoch_done(self) -> bool:
        """Whether the loaded position is behind its epoch's last batch. False where no length is known."""
        return self._epoch_done

    @property
    def batches_behind(self) -> int:
        """
        How many batches of its epoch lie behind a loaded position, in batches of this job.

        With another number of ranks these are others than were trained on; as many are left as there are to come.
        """
        return self._way.behind()

    def begin_epoch(self, epoch: int) -> None:
        """
        Make ready for one iterator of *epoch*: once, and before that iterator is made.

        In the epoch of a loaded position the iterator will go on there; any other epoch begins at its
        beginning.
        """
        self._way.begin(epoch)
        self._epoch_done = self._epoch_done and epoch == self._epoch
        self._epoch = epoch

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """
        Bring a new iterator to the position, if its loader could not do that by itself.

        Leaves the random streams of this process as they were at :meth:`begin_epoch`.

        Raises:
            ConfigError: The loader has fewer batches than were trained on.
        """
        self._way.fast_forward(iterator)

    def state_dict(self, batches_done: int) -> dict[str, Any]:
        """
        Return the position behind *batches_done* batches of the present iterator, or of none if 0.

        Only tensors, numbers, strings, None, and dicts and lists of them, unless a stateful loader's own
        state holds something else. For such a loader this is the moment to ask: its state is that of now.
        """
        return {
            "kind": self.kind,
            "world_size": self._world_size,
            "epoch": self._epoch,
            "epoch_done": self._way.done_after(batches_done),
            "at": self._way.after(batches_done),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Take over what :meth:`state_dict` returned. Comes before :meth:`begin_epoch`.

        Raises:
            ConfigError: The position was saved for another kind of loader, other data, or, for a stateful
                loader, another number of ranks or workers.
        """
        if state_dict["kind"] != self.kind:
            raise ConfigError(
                f"the training loader's kind={self.kind} differs from kind={state_dict['kind']} in the "
                f"checkpoint, whose position it cannot take over. Use the same loader as before, or start a "
                f"new run"
            )
        self._way.load(state_dict["at"], epoch=state_dict["epoch"], world_size=state_dict["world_size"])
        self._epoch = state_dict["epoch"]
        self._epoch_done = state_dict["epoch_done"]


class _Way(Protocol):
    """How a position is kept for one kind of loader. Calls come in the order of :class:`LoaderPosition`."""

    kind: str

    def begin(self, epoch: int) -> None:
        """Make ready for one iterator of *epoch*."""
        ...

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Bring the new *iterator* to the position."""
        ...

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position behind *batches* batches of the present iterator."""
        ...

    def done_after(self, batches: int) -> bool:
        """Whether that is behind the epoch's last batch."""
        ...

    def behind(self) -> int:
        """Return how many batches of this job lie behind the loaded position."""
        ...

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Take over what :meth:`after` returned in *epoch* on one of *world_size* ranks."""
        ...


def _way(loader: Any, world_size: int) -> _Way:
    elastic = next((found for found in samplers(loader) if isinstance(found, ElasticSampler)), None)
    if elastic is not None:
        return _Elastic(loader, elastic, world_size)
    plain = plain_loader(loader)
    if hasattr(plain, "state_dict") and hasattr(plain, "load_state_dict"):
        return Stateful(loader, world_size)
    return Counted(loader, world_size)


class _Elastic:
    """The position is the sampler's: how many samples of the epoch's global order are consumed."""

    kind = "elastic"

    def __init__(self, loader: Any, sampler: ElasticSampler, world_size: int) -> None:
        self._loader = loader
        self._sampler = sampler
        self._generators = LoaderGenerators(loader)
        self._batch_size, self._drop_last = _batching(loader)
        # Accelerate's loader that reads on rank 0 and sends the others their part is known by its slice_fn.
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

    def begin(self, epoch: int) -> None:
        """Set the epoch; of the sampler's own one this leaves the position alone."""
        set_epoch(self._loader, epoch)
        self._generators.begin(epoch)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Do nothing: *iterator* begins at the position."""

    def after(self, batches: int) -> dict[str, Any]:
        """Return the sampler's state, moved on by the samples of all ranks."""
        state = self._sampler.state_dict()
        # Behind the last batch all is consumed, also what padding added or dropping left over: on another
        # number of ranks that remainder could be a batch.
        consumed = state["num_samples"] if self.done_after(batches) else state["consumed"] + self._samples(batches)
        return {**state, "consumed": consumed}

    def done_after(self, batches: int) -> bool:
        """Compare with the batches that this iterator yields."""
        return batches >= self._batches(self._sampler.remaining)

    def behind(self) -> int:
        """Count from the end: the last batch is the last one on any number of ranks."""
        return self._batches(self._sampler.total_size) - self._batches(self._sampler.remaining)

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Let the sampler go there; the number of ranks does not matter to it."""
        self._sampler.load_state_dict(at)

    def _batches(self, samples: int) -> int:
        """Return how many batches *samples* make: an incomplete last one counts only if it is not dropped."""
        full, rest = divmod(samples, self._samples(1))
        return full + (rest > 0 and not self._drop_last)

    def _samples(self, batches: int) -> int:
        return batches * self._batch_size * self._sampler.num_replicas


def _batching(loader: Any) -> tuple[int, bool]:
    """Return the samples of one batch of the sampler's, and whether an incomplete last batch is dropped."""
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
