"""Positions in a loader that restores itself, such as a torchdata ``StatefulDataLoader``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .internals import (
    as_unfinished,
    check_stateful,
    dataset_state_of,
    drop_early_iterator,
    end_persistent_workers,
    is_hugging_face,
    knows_its_end,
)
from .order import Order, recorded_own_sampler
from .passing import has_known_data, tell_of_new_workers
from .replayed import MISSING, Replayed, require_same
from .rng import are_at, borrowed_streams, raw_streams
from .stream_state import initial_state, keeps_state, loses_samples, repeats_start
from .unwrap import streams
from .where import Where

_MOST_BATCHES_CHECKED: Final = 64
"""Batches that are fetched once more, once per process, to check the state of a stream."""


class Stateful(Replayed):
    """Position that the loader itself saves and restores, also if Accelerate has wrapped the loader."""

    kind = "stateful"

    def __init__(self, loader: Any, world_size: int) -> None:
        super().__init__(loader, world_size)
        check_stateful(self._plain)
        self._num_workers = getattr(self._plain, "num_workers", 0)
        self._has_begun = False
        # The state that brings a new loader to where the present iterator began. It may be a state from the end of
        # the epoch before, or None.
        self._start: dict[str, Any] = {"loader": None, "of_epoch_before": True}
        self._dataset: Any = getattr(self._plain, "dataset", None)
        self._is_stream = keeps_state(self._dataset)
        self._initial = initial_state(self._dataset) if self._is_stream else None
        self._given: Any = None  # the state that was restored to the data set
        self._earlier: tuple[int, Any] | None = None  # batches, and the state of the data set after them
        has_workers = self._num_workers > 0
        self._sampler = recorded_own_sampler(loader)
        self._order = Order()
        # True if the last fetch drew from the streams of this process, None if none can. Workers have streams of their
        # own, and another warning.
        may_draw = not has_workers and (self._sampler is not None or not has_known_data(loader))
        self._drew = False if may_draw else None
        self._is_checked = not self._is_stream or has_workers or is_hugging_face(self._dataset)
        drop_early_iterator(self._plain)

    def begin(self, epoch: int, number: int) -> None:
        """Give the loader its state, so that its next iterator makes this pass of *epoch*."""
        loaded = self._loaded
        order = None if loaded is None else loaded.get("order")
        if self._sampler is not None:
            self._sampler.open(opens=loaded is not None and order is None)
        super().begin(epoch, number)
        self._has_begun = True
        if loaded is not None and self._lacks_workers(epoch, number):
            tell_of_new_workers()
        if loaded is not None and self._before > 0 and loaded.get("drew"):
            _tell_of_drawn_samples()
        if self._sampler is not None:
            self._order = Order()
            self._sampler.record(self._order)
            if self._before > 0:
                self._order.expect(order, _tell_other_order)
            else:
                self._sampler.open(opens=False)

    def after(self, batches: int) -> dict[str, Any]:
        """Ask the loader for its state. Before its first batch use the start, because asking starts an iterator."""
        if self._loaded is not None:
            return dict(self._loaded)
        self._check_stream(batches)
        now = {"loader": self._loader.state_dict(), "of_epoch_before": False} if batches > 0 else self._start
        position = {**super().after(batches), **now, "num_workers": self._num_workers}
        if self._drew and batches > 0:
            position["drew"] = True
        order = self._order.state_dict()
        return position if order is None else {**position, "order": order}

    def note_fetch(self, batches: int) -> None:
        """Keep the streams for the first fetch, and look after two more whether the state holds the position."""
        super().note_fetch(batches)
        self._check_stream(batches)

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Fetch, and take note whether the batch ahead has drawn from the streams. The loader does not keep them."""
        if self._drew is None:
            return super().fetch_ahead(iterator, batches)
        before = raw_streams()
        batch = super().fetch_ahead(iterator, batches)
        self._drew = not are_at(before)
        return batch

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Keep the position. Refuse one that the loader would refuse later, or follow to another place."""
        here = self._samples_per_step
        numbers = [
            ("world_size", self._world_size, where.world_size),
            ("num_workers", self._num_workers, at["num_workers"]),
            (f"batch_size over {self._world_size} ranks", here, at.get("batch_size", here)),
        ]
        is_stream = streams(self._loader)
        other = "" if is_stream else ", or a loader from spot_plugins.data.elastic_loader, which takes any"
        require_same(numbers, "a stateful loader", other)
        super().load(at, where=where)

    def _begin_again(self, loaded: Mapping[str, Any]) -> None:
        super()._begin_again(loaded)
        self._start = {name: loaded[name] for name in self._start}
        self._given = self._dataset_state(loaded["loader"])
        if loaded["of_epoch_before"]:
            self._pass_over(loaded["loader"])
        else:
            # Accelerate marks the state as finished already at the last batch. torchdata would then begin a new
            # epoch at once, but this epoch has to end first.
            self._plain.load_state_dict(as_unfinished(loaded["loader"]))

    def _begin_anew(self, loaded: Mapping[str, Any] | None) -> None:
        super()._begin_anew(loaded)
        if loaded is not None:
            self._pass_over(loaded["loader"])
            self._start = {"loader": loaded["loader"], "of_epoch_before": True}
            self._given = self._dataset_state(loaded["loader"])
        elif self._has_begun:
            self._start = {"loader": self._loader.state_dict(), "of_epoch_before": True}
        self._earlier = None
        self._forget_given()

    def _lacks_workers(self, epoch: int, number: int) -> bool:
        """Return True if workers were in the midst of something that no state holds, as far as is known."""
        if self._num_workers == 0 or hasattr(self._dataset, "state_dict") or has_known_data(self._loader):
            return False
        # The samples of a stream without a state are fetched again.
        return (self._before > 0 and not streams(self._loader)) or (self._keeps_workers and bool(epoch or number))

    def _forget_given(self) -> None:
        """
        Let a data set begin at its beginning that would begin every epoch where it was restored to.

        An uninterrupted process never restores it. Without workers it gets back the state in which it was seen first.
        Persistent workers are made anew from the data set of this process, which was never restored.
        """
        given, self._given = self._given, None
        if given is None or not repeats_start(self._dataset, given):
            return
        if self._num_workers > 0:
            end_persistent_workers(self._plain)
        elif self._initial is None:
            warnings.warn(
                f"{type(self._dataset).__name__} begins every epoch where it was restored to, and had no state before "
                f"its first epoch. Let it forget the state of load_state_dict() when an iterator is made",
                stacklevel=2,
            )
        else:
            self._dataset.load_state_dict(copy.deepcopy(self._initial))

    def _dataset_state(self, state: Mapping[str, Any] | None) -> Any:
        """Return the state of the stream within *state* of its loader. None if this is no stream with a state."""
        if not self._is_stream or state is None:
            return None
        return self._initial if self._num_workers > 0 else dataset_state_of(state)

    def _check_stream(self, batches: int) -> None:
        """Warn if the state of the data set after some batches does not lead to its state after a few more."""
        if self._is_checked or batches == 0 or self._samples_per_step is None:
            return
        # Of the loader, because Accelerate has fetched one batch ahead and knows the state from before that.
        state = copy.deepcopy(dataset_state_of(self._loader.state_dict()))
        earlier, self._earlier = self._earlier, (batches, state)
        if earlier is None or state is None or not 0 < batches - earlier[0] <= _MOST_BATCHES_CHECKED:
            return
        self._is_checked = True
        num_samples = (batches - earlier[0]) * self._samples_per_step // self._world_size
        if loses_samples(self._dataset, earlier[1], state, num_samples):
            warnings.warn(
                f"{type(self._dataset).__name__}.state_dict() does not hold all that its iterator knows, such as the "
                f"content of a shuffle buffer. A resumed epoch would miss samples. Use a plain torch DataLoader, whose "
                f"position is found by fetching batches again",
                stacklevel=2,
            )

    def _pass_over(self, state: Mapping[str, Any] | None) -> None:
        """
        Restore the loader to the end of the epoch in which *state* was saved.

        A loader that was saved at its last batch has not noticed yet that the epoch is over. Its next iterator would
        yield nothing. torchdata's loader makes a fresh iterator after that one.

        Any other loader is tried: if its iterator yields a batch, the loader was at the beginning of an epoch, and
        its state is restored again.
        """
        if state is None:
            return
        self._plain.load_state_dict(dict(state))
        with borrowed_streams():
            iterator = iter(self._plain)
            if not knows_its_end(state) and next(iterator, MISSING) is not MISSING:
                self._plain.load_state_dict(dict(state))


def _tell_other_order() -> None:
    warnings.warn(
        "the sampler yields another order of this epoch than the one that was trained on, so some samples come twice "
        "or never. It draws from a state of its own. Give it state_dict() and load_state_dict(), or let its order "
        "depend on the seed and the epoch alone",
        stacklevel=2,
    )


def _tell_of_drawn_samples() -> None:
    warnings.warn(
        "the samples or the collate function draw random numbers in the training process, and the state of a "
        "StatefulDataLoader lacks those of the batch that Accelerate has fetched ahead. So the next batch is drawn "
        "with other numbers, and the rest differs from an uninterrupted training. Use a plain DataLoader or "
        "elastic_loader, which are exact",
        stacklevel=2,
    )
