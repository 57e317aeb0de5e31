"""Positions in a loader that keeps none itself: its batches are counted, and fetched again after a resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from .internals import has_shuffle_buffer
from .order import Order, recorded_sampler
from .replayed import MISSING, Replayed, length_of
from .rng import load_streams_state, raw_streams, same_streams, streams_state
from .unwrap import num_samples, streams
from .where import Where


class Counted(Replayed):
    """Position that is reached again by fetching the batches that were trained on and throwing them away."""

    kind = "counted"

    def __init__(self, loader: Any, world_size: int) -> None:
        super().__init__(loader, world_size)
        deals_out = world_size > 1 and hasattr(loader, "slice_fn")  # rank 0 alone reads, for all of them
        self._sampler = None if deals_out else recorded_sampler(loader)
        self._order = Order()
        self._has_workers = getattr(self._plain, "num_workers", 0) > 0
        self._at_ahead: dict[str, Any] | None = None  # streams before a fetch that went ahead and drew from them
        self._is_other_job = False  # the number of ranks or samples differs, so that the batches do too

    def begin(self, epoch: int, number: int) -> None:
        """Begin a pass, and record the order of its samples if a replay might yield another one."""
        loaded = self._loaded
        super().begin(epoch, number)
        self._at_ahead = None if loaded is None or self._before == 0 else loaded.get("at_ahead")
        if self._sampler is None:
            return
        self._order = Order(lambda: self.note_fetch(0))
        self._sampler.record(self._order)
        if loaded is not None and self._before > 0 and not (self._is_other_job or self.ends_after(0)):
            self._order.expect(loaded.get("order"), self._tell_other_order)

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position. It has the order of the samples if that is recorded, and streams if those are needed."""
        position = super().after(batches)
        if self._loaded is not None:
            return position
        more = {"order": self._order.state_dict(), "at_ahead": self._at_ahead}
        return {**position, **{name: value for name, value in more.items() if value is not None}}

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Fetch, and keep the streams of before if the batch ahead has drawn from them. Workers have their own."""
        if self._has_workers:
            return super().fetch_ahead(iterator, batches)
        before = raw_streams()
        batch = super().fetch_ahead(iterator, batches)
        # The first fetch also gets the first batch. A replay repeats it with the streams of the start of the epoch.
        is_first = self._before + batches == 0
        self._at_ahead = None if is_first or same_streams(before, raw_streams()) else streams_state(before)
        return batch

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Keep the position, in batches of this job. A partial batch is trained on twice, not skipped."""
        length = length_of(self._loader)
        self._is_other_job = (where.world_size, at.get("batch_size"), at.get("num_samples")) != (
            self._world_size,
            self._samples_per_step,
            num_samples(self._loader),
        )
        # In the same job the length may still grow: a sampler may take more of the data from epoch to epoch.
        is_all = where.epoch_done and self._is_other_job and length is not None
        batches = length if is_all else self._batches_here(at, where.world_size)
        super().load({**at, "batches": batches}, where=where)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Throw away the first batches of *iterator*, then restore the streams that :meth:`begin` found."""
        if self.interrupted is not None:
            warnings.warn(
                f"fetching {self._before} batches again to find the position in the training data. {self._advice()}",
                stacklevel=3,
            )
            if self._at_fetch is not None or self.is_disturbed:
                load_streams_state(self._at_fetch or self.at_begin)
            for number in range(self._before):
                if self._at_ahead is not None and 0 < number == self._before - 1:
                    load_streams_state(self._at_ahead)
                if next(iterator, MISSING) is MISSING:
                    raise ConfigError(
                        f"the training loader ended after {number} batches, but {self._before} of this epoch "
                        f"were trained on. Use the same data and batch size as before, or start a new run"
                    )
        super().fast_forward(iterator)

    def _tell_other_order(self) -> None:
        warnings.warn(
            "the batches that were fetched again are not those that were trained on, so some samples of this epoch "
            "come twice or never. The order of the samples depends on something that training changes, "
            "such as weights by loss. Let it depend on the seed and the epoch alone, or draw it at the begin of an "
            "epoch and register it with a state_dict()",
            stacklevel=2,
        )

    def _advice(self) -> str:
        """Return the way to go to the position at once, which depends on the data."""
        if has_shuffle_buffer(getattr(self._plain, "dataset", None)):
            return (
                "The state of a data set with a shuffle buffer lacks the content of the buffer. A torchdata "
                "StatefulDataLoader goes there at once if the data set shuffles its shards alone"
            )
        if streams(self._loader):
            return (
                "A torchdata StatefulDataLoader over a data set with state_dict() and load_state_dict() goes there at "
                "once"
            )
        return "A loader from spot_plugins.data.elastic_loader goes there at once"

    def _batches_here(self, at: Mapping[str, Any], world_size: int) -> int:
        """Return the number of batches of this job that hold no more samples than were trained on."""
        here, there = self._samples_per_step, at.get("batch_size", self._samples_per_step)
        unit = "samples"
        if here is None or there is None or "batch_size" not in at:
            if here != there:
                raise ConfigError(
                    f"the training loader's batch_size={here} differs from batch_size={there} in the checkpoint, so "
                    f"its batches cannot be compared. Use the same batches as before, or start a new run"
                )
            here, there, unit = self._world_size, world_size, "batches"
        batches, rest = divmod(int(at["batches"]) * int(there), here)
        if rest:
            warnings.warn(
                f"{rest} {unit} of this epoch are trained on twice, because {at['batches'] * there} were trained on "
                f"and they do not divide into steps of {here}. Use steps of {there} as before to avoid it, counted "
                f"over all ranks",
                stacklevel=5,
            )
        return batches
