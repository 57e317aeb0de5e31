"""Where the training loaders stand. Lightning makes them late, and their iterators at once."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities import CombinedLoader

from ..data import ElasticSampler, LoaderPosition, samplers, shield_workers
from ..data.rng import load_streams_state, streams_state
from ..errors import ConfigError


class PositionPart:
    """
    The positions of all training loaders.

    A loader passes ``Strategy.process_dataloader`` between its making and the making of its iterator. There its
    workers get their shield, and a training loader its position.

    Of a loader without a length Lightning fetches one batch ahead, to know which one is the last. The position is
    then the one before that fetch, and the random streams that the batch was made with are kept beside it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._positions: list[LoaderPosition] = []
        self._made: list[LoaderPosition] = []
        self._restored: list[dict[str, Any]] = []
        self._ahead: dict[str, Any] | None = None
        self._streams: dict[str, Any] | None = None
        self._resharded = False
        strategy = trainer.strategy
        original = strategy.process_dataloader

        def process_dataloader(dataloader: Any) -> Any:
            loader = original(dataloader)
            shield_workers(loader)
            self._bind_samplers(loader)
            if trainer.training:
                self._make_position(loader)
            return loader

        strategy.__dict__["process_dataloader"] = process_dataloader
        trainer.fit_loop.epoch_loop.__dict__["_on_before_fetch"] = self._before_fetch

    def state_dict(self) -> dict[str, Any]:
        """Return the positions behind the present batch."""
        return {"replicas": self.num_replicas, **(self._ahead or {"streams": None, "loaders": self._behind_fetched()})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the positions until the loaders exist. Those made already, at the beginning, are made anew."""
        self._restored, self._streams = state["loaders"], state["streams"]
        self._resharded = state["replicas"] != self.num_replicas
        self._made = []
        self._trainer.fit_loop._combined_loader = None

    @property
    def num_replicas(self) -> int:
        """How many ranks read different samples. With tensor parallelism some read the same."""
        kwargs = getattr(self._trainer.strategy, "distributed_sampler_kwargs", None)
        return 1 if kwargs is None else int(kwargs["num_replicas"])

    @property
    def batches_behind(self) -> int | None:
        """How many batches of this job lie behind the restored position; None if they are those that were counted."""
        if not self._resharded:
            return None
        return max(position.batches_behind for position in self._positions)

    def settle(self) -> None:
        """Bring iterators that cannot start at a position there, right before the first batch."""
        self._adopt()
        iterators = self._combined._iterator
        assert iterators is not None
        ahead = self._fetched_ahead
        if ahead and len({position.kind for position in self._positions}) > 1:
            raise ConfigError(
                "of several training loaders one is without a length, and not all find their position in the same way. "
                "Give that one a length, or make all of them StatefulDataLoaders"
            )
        num_used = 0
        for position, iterator in zip(self._positions, iterators.iterators, strict=True):
            left = iter(ahead.copy())
            position.fast_forward(chain(left, iterator))
            num_used = len(ahead) - len(list(left))
        if num_used:
            self._fetch_again()

    def begin_epoch(self) -> None:
        """Begin a new epoch, unless the iterator for it exists already."""
        self._adopt()
        self._ahead = None
        for position in self._positions:
            if position.epoch != self._epoch:
                position.begin_epoch(self._epoch)

    def close(self) -> None:
        """Give the trainer its own methods back."""
        self._trainer.strategy.__dict__.pop("process_dataloader", None)
        self._trainer.fit_loop.epoch_loop.__dict__.pop("_on_before_fetch", None)

    @property
    def _epoch(self) -> int:
        """The epoch that is trained, or comes next: what Lightning itself tells samplers."""
        return cast("int", self._trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]

    @property
    def _combined(self) -> CombinedLoader:
        combined = self._trainer.fit_loop._combined_loader
        assert combined is not None
        return combined

    @property
    def _fetched_ahead(self) -> list[Any]:
        """The batches that were fetched before they are needed: one, of loaders without a length."""
        fetcher = self._trainer.fit_loop._data_fetcher
        return fetcher.batches if isinstance(fetcher, _PrefetchDataFetcher) else []

    def _behind_fetched(self) -> list[dict[str, Any]]:
        """Return the positions behind all batches that the present iterators gave."""
        return [position.state_dict(self._num_fetched) for position in self._positions]

    @property
    def _num_fetched(self) -> int:
        iterator = self._combined._iterator
        return 0 if iterator is None else iterator._idx

    def _before_fetch(self) -> None:
        fetcher = self._trainer.fit_loop._data_fetcher
        if isinstance(fetcher, _PrefetchDataFetcher) and fetcher.length is None:
            self._adopt()
            self._ahead = {"streams": streams_state(), "loaders": self._behind_fetched()}
        _TrainingEpochLoop._on_before_fetch(self._trainer.fit_loop.epoch_loop)

    def _fetch_again(self) -> None:
        """Fetch ahead once more, now at the position, with the random streams of the first time."""
        fetcher = self._trainer.fit_loop._data_fetcher
        assert isinstance(fetcher, _PrefetchDataFetcher)
        fetcher.batches.clear()
        iterator = self._combined._iterator
        assert iterator is not None
        iterator._idx = 0
        if self._streams is not None:
            load_streams_state(self._streams)
        with suppress(StopIteration):
            fetcher.batches.append(_DataFetcher.__next__(fetcher))

    def _bind_samplers(self, loader: Any) -> None:
        kwargs = getattr(self._trainer.strategy, "distributed_sampler_kwargs", None)
        for sampler in samplers(loader):
            if isinstance(sampler, ElasticSampler) and kwargs is not None:
                sampler.bind(**kwargs)

    def _make_position(self, loader: Any) -> None:
        position = LoaderPosition(loader, self.num_replicas)
        number = len(self._made)
        if number < len(self._restored):
            position.load_state_dict(self._restored[number])
        position.begin_epoch(self._epoch)
        self._made.append(position)
        if self._streams is not None and position.kind != "counted":
            load_streams_state(self._streams)  # the batch ahead is fetched next

    def _adopt(self) -> None:
        """Use the positions of loaders that were just made, also when they are made anew every few epochs."""
        if self._made:
            self._positions, self._made, self._restored = self._made, [], []
