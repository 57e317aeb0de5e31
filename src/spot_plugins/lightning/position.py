"""The positions of training in its loaders. Lightning makes loaders late, and their iterators right after them."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader

from ..config import FastForward
from ..data import ElasticSampler, TrackedLoader, samplers, shield_workers
from ..data.rng import load_streams_state, streams_state
from ..errors import ConfigError
from . import loader_internals


class PositionPart:
    """
    The positions of all training loaders.

    Lightning combines the training loaders, and its combined loader makes their iterators. In some modes it makes
    several iterators of a short loader in one epoch. This part lets it make them from tracked loaders, which count.
    Lightning may make the loaders several times, for example to find a learning rate. Then their positions begin anew.

    After a resume the iterators are made by :meth:`apply`, after all hooks that come before the first batch. Until
    then the loaders yield nothing.

    If a loader has no length, Lightning fetches one batch ahead to know which batch is the last. The position is then
    the one before that fetch. The random streams from before the fetch are saved with it.
    """

    def __init__(self, trainer: Trainer, fast_forward: FastForward) -> None:
        self._trainer = trainer
        self._fast_forward = fast_forward
        self._combined: CombinedLoader | None = None
        self._loaders: list[TrackedLoader] = []
        self._restored: dict[str, Any] | None = None
        self._waits = False  # for apply()
        self._continues = False  # in the middle of an epoch
        self._ahead: dict[str, Any] | None = None
        self._numbers_ahead: tuple[int, ...] = ()
        self._resharded = False
        strategy = trainer.strategy
        original = strategy.process_dataloader

        def process_dataloader(dataloader: Any) -> Any:
            loader = original(dataloader)
            shield_workers(loader)
            self._bind_samplers(loader)
            return loader

        strategy.__dict__["process_dataloader"] = process_dataloader
        loader_internals.call_with_training_loaders(trainer, self._adopt)
        loader_internals.call_before_fetch(trainer, self._before_fetch)

    def state_dict(self) -> dict[str, Any]:
        """Return the positions after the present batch."""
        if self._waits and self._restored is not None:
            return self._restored
        state = {"replicas": self.num_replicas, **(self._ahead or {"streams": None, "loaders": self._after_fetched()})}
        if self._trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            state["loaders_made_in"] = loader_internals.loaders_made_in(self._trainer)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the positions until the loaders exist. Loaders that exist already are made again."""
        if not state["loaders"]:  # saved in the sanity check, before there were any
            return
        self._restored = state
        self._waits = True
        self._resharded = state["replicas"] != self.num_replicas
        loader_internals.make_training_loaders_again(self._trainer)

    @property
    def num_replicas(self) -> int:
        """Number of ranks that read different samples. With tensor parallelism some ranks read the same."""
        kwargs = getattr(self._trainer.strategy, "distributed_sampler_kwargs", None)
        return 1 if kwargs is None else int(kwargs["num_replicas"])

    @property
    def num_done(self) -> int | None:
        """
        Number of batches of this job before the restored position. None if Lightning's own counters are right.

        They are counted back from the end of the epoch, because the batch size or the number of ranks may have been
        another one before.
        """
        return self._num_fetched() if self._continues or self._resharded else None

    def numbers(self) -> tuple[int, ...]:
        """Return epoch and progress in each loader as numbers. This takes a microsecond, unlike a position."""
        if self._ahead is not None:
            return self._numbers_ahead
        return tuple(number for loader in self._loaders for number in loader.numbers())

    def apply(self) -> None:
        """Make the iterators of a resumed epoch, right before the first batch."""
        if not self._waits:
            return
        assert self._restored is not None
        self._waits = False
        loader_internals.make_training_iterators(self._trainer)
        if "loaders_made_in" in self._restored:
            loader_internals.set_loaders_made_in(self._trainer, self._restored["loaders_made_in"])
        self._restored = None

    def close(self) -> None:
        """Give the trainer its own methods back."""
        self._trainer.strategy.__dict__.pop("process_dataloader", None)
        loader_internals.stop_call_with_training_loaders(self._trainer)
        loader_internals.stop_call_before_fetch(self._trainer)
        if self._combined is not None:
            loader_internals.restore_iterables(self._combined)

    @property
    def _epoch(self) -> int:
        """The epoch that is trained now, or comes next. Lightning gives samplers the same number."""
        return cast("int", self._trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]

    def _adopt(self, combined: CombinedLoader) -> None:
        """Track the loaders of *combined*, which Lightning has just made."""
        if self._combined is not None:
            loader_internals.restore_iterables(self._combined)
        self._combined = combined
        self._loaders = [
            TrackedLoader(loader, self.num_replicas, fast_forward=self._fast_forward)
            for loader in loader_internals.loaders_of(combined)
        ]
        if self._restored is not None:
            states = self._restored["loaders"]
            if len(states) != len(self._loaders):
                raise ConfigError(
                    f"train_dataloader returned {len(self._loaders)} loaders, and {len(states)} are in the checkpoint, "
                    f"so their positions cannot be restored. Use the same loaders as before, or start a new run"
                )
            for loader, state in zip(self._loaders, states, strict=True):
                loader.load_state_dict(state)
        loader_internals.replace_iterables(combined, self._begin, self._begun)

    def _begin(self) -> list[Any]:
        """Return what the iterators of the present epoch are made from."""
        self._ahead = None
        if self._waits:
            return [_Waiting(loader) for loader in self._loaders]
        self._continues = self._restored is not None and self._loaders[0].position.epoch == self._epoch
        for loader in self._loaders:
            loader.begin_epoch(self._epoch)
        return self._loaders

    def _begun(self, combined: CombinedLoader) -> None:
        """Restore what Lightning keeps for all iterators together."""
        if self._restored is None or self._waits:
            return
        completed = [loader.num_passes > 0 for loader in self._loaders]
        loader_internals.set_progress(combined, num_fetched=self._num_fetched(), completed=completed)
        if self._restored["streams"] is not None:
            load_streams_state(self._restored["streams"])  # the batch ahead is fetched next

    def _num_fetched(self) -> int:
        """Return the number of batches of this job before the position with which the iterators have begun."""
        total = loader_internals.num_batches(self._trainer)
        if total == float("inf"):
            return max(loader.position.num_done for loader in self._loaders if not loader.num_passes)
        return int(total - loader_internals.num_batches_left(self._trainer, self._loaders))

    def _after_fetched(self) -> list[dict[str, Any]]:
        """Return the positions after all batches that the present iterators yielded."""
        return [loader.state_dict() for loader in self._loaders]

    def _before_fetch(self) -> None:
        if loader_internals.fetches_ahead(self._trainer):
            self._ahead = None
            self._numbers_ahead = self.numbers()
            self._ahead = {"streams": streams_state(), "loaders": self._after_fetched()}

    def _bind_samplers(self, loader: Any) -> None:
        kwargs = getattr(self._trainer.strategy, "distributed_sampler_kwargs", None)
        for sampler in samplers(loader):
            if isinstance(sampler, ElasticSampler) and kwargs is not None:
                sampler.bind(**kwargs)


class _Waiting:
    """A loader that has its length, and yields nothing until its position is applied."""

    def __init__(self, loader: TrackedLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Any:
        return iter(())
