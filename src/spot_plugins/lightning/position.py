"""The positions of training in its loaders. Lightning makes loaders late, and their iterators right after them."""

from __future__ import annotations

from itertools import chain
from typing import Any, cast

from lightning.pytorch import Trainer

from ..data import ElasticSampler, LoaderPosition, samplers, shield_workers
from ..data.rng import load_streams_state, streams_state
from ..errors import ConfigError
from . import internals


class PositionPart:
    """
    The positions of all training loaders.

    Lightning passes every new loader through ``Strategy.process_dataloader`` and makes its iterator after that. This
    part replaces the method: it shields the workers of the loader and gives a training loader its position.

    If a loader has no length, Lightning fetches one batch ahead to know which batch is the last. The position is then
    the one before that fetch. The random streams from before the fetch are saved with it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._positions: list[LoaderPosition] = []
        self._made: list[LoaderPosition] = []
        self._restored: list[dict[str, Any]] = []
        self._kept: list[dict[str, Any]] = []
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
        internals.call_before_fetch(trainer, self._before_fetch)

    def state_dict(self) -> dict[str, Any]:
        """Return the positions after the present batch."""
        return {"replicas": self.num_replicas, **(self._ahead or {"streams": None, "loaders": self._after_fetched()})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the positions until the loaders exist. Loaders that exist already are made again."""
        self._restored, self._streams = state["loaders"], state["streams"]
        self._kept = self._restored
        self._resharded = state["replicas"] != self.num_replicas
        self._made = []
        internals.make_training_loaders_again(self._trainer)

    @property
    def num_replicas(self) -> int:
        """Number of ranks that read different samples. With tensor parallelism some ranks read the same."""
        kwargs = getattr(self._trainer.strategy, "distributed_sampler_kwargs", None)
        return 1 if kwargs is None else int(kwargs["num_replicas"])

    @property
    def num_done(self) -> int | None:
        """Number of batches of this job before the restored position. None if Lightning's own counters are right."""
        if not self._resharded:
            return None
        return max(position.num_done for position in self._positions)

    def apply(self) -> None:
        """Bring iterators that cannot start at a position there, right before the first batch."""
        self._adopt()
        ahead = internals.batches_ahead(self._trainer)
        if ahead and len({position.kind for position in self._positions}) > 1:
            raise ConfigError(
                "of several training loaders one is without a length, and not all find their position in the same way. "
                "Give that one a length, or make all of them StatefulDataLoaders"
            )
        num_used = 0
        for position, iterator in zip(self._positions, internals.training_iterators(self._trainer), strict=True):
            left = iter(ahead.copy())
            position.fast_forward(chain(left, iterator))
            num_used = len(ahead) - len(list(left))
        if num_used:  # the batch ahead is now the one at the position, with the random streams of its first fetch
            if self._streams is not None:
                load_streams_state(self._streams)
            internals.fetch_ahead_again(self._trainer)

    def begin_again(self) -> None:
        """Make the iterators of a restored epoch anew, because a hook may have changed what the loaders read."""
        self._adopt()
        for position, state in zip(self._positions, self._kept, strict=False):
            position.load_state_dict(state)
            position.begin_epoch(self._epoch)
        if self._streams is not None and any(position.kind != "counted" for position in self._positions):
            load_streams_state(self._streams)
        internals.make_iterators_again(self._trainer)

    def begin_epoch(self) -> None:
        """Begin a new epoch, unless its iterator exists already."""
        self._adopt()
        self._ahead = None
        for position in self._positions:
            if position.epoch != self._epoch:
                position.begin_epoch(self._epoch)

    def close(self) -> None:
        """Give the trainer its own methods back."""
        self._trainer.strategy.__dict__.pop("process_dataloader", None)
        internals.stop_call_before_fetch(self._trainer)

    @property
    def _epoch(self) -> int:
        """The epoch that is trained now, or comes next. Lightning gives samplers the same number."""
        return cast("int", self._trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]

    def _after_fetched(self) -> list[dict[str, Any]]:
        """Return the positions after all batches that the present iterators yielded."""
        return [position.state_dict(internals.num_fetched(self._trainer)) for position in self._positions]

    def _before_fetch(self) -> None:
        if internals.fetches_ahead(self._trainer):
            self._adopt()
            self._ahead = {"streams": streams_state(), "loaders": self._after_fetched()}

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
        """Use the positions of loaders that were just made, also if loaders are made again every few epochs."""
        if self._made:
            self._positions, self._made, self._restored = self._made, [], []
