"""Positions in a loader that keeps none itself: its batches are counted, and fetched again or passed over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import FastForward
from ..errors import ConfigError
from .internals import has_persistent_iterator, has_shuffle_buffer
from .order import Order, needs_record, recorded_sampler
from .passing import (
    can_pass_over,
    depends_on_index_alone,
    has_known_data,
    num_fetched_anyhow,
    tell_of_new_workers,
)
from .price import Price
from .replayed import MISSING, Replayed, length_of, require_same
from .rng import are_at, load_streams_state, raw_streams, streams_state
from .unwrap import num_samples, streams
from .values import bytes_of
from .where import Where


class Counted(Replayed):
    """Position that is reached again by passing over the batches that were trained on, or by fetching them again."""

    kind = "counted"

    def __init__(self, loader: Any, world_size: int, fast_forward: FastForward) -> None:
        super().__init__(loader, world_size)
        deals_out = world_size > 1 and hasattr(loader, "slice_fn")  # rank 0 alone reads, for all of them
        self._needs_record = needs_record(loader) and not deals_out
        self._sampler = recorded_sampler(loader) if self._needs_record else None
        self._order = Order()
        self._num_workers: int = getattr(self._plain, "num_workers", 0)
        self._is_stream = streams(loader)
        self._at_ahead: dict[str, Any] | None = None  # streams before a fetch that went ahead and drew from them
        self._is_other_job = False  # the number of ranks or samples differs, so that the batches do too
        self._is_fixed = depends_on_index_alone(loader)
        self._can_pass_over = can_pass_over(loader)
        self._may_pass_over = self._can_pass_over and (
            fast_forward == "skip" or (fast_forward == "auto" and self._is_fixed)
        )
        self._passes_over = False
        self._num_to_pass = 0  # batches that the sampler is asked to pass over in this pass

    def begin(self, epoch: int, number: int) -> None:
        """Begin a pass, and record the order of its samples if a replay might yield another one."""
        loaded = self._loaded
        super().begin(epoch, number)
        self._at_ahead = None if loaded is None or self._before == 0 else loaded.get("at_ahead")
        if loaded is not None and (epoch or number) and self._keeps_workers and not has_known_data(self._loader):
            tell_of_new_workers()
        # An iterator of persistent workers that exists by now has its sampler, and takes no other one.
        self._passes_over = self._may_pass_over and not has_persistent_iterator(self._plain)
        self._num_to_pass = max(self._before - num_fetched_anyhow(self._loader), 0) if self._passes_over else 0
        if self._sampler is None and self._num_to_pass:
            self._sampler = recorded_sampler(self._loader)
        if self._is_stream:
            self._order = Order()
            has_other_workers = self._keeps_workers and bool(epoch or number)  # which is told
            if loaded is not None and self._before > 0 and not (self._is_other_job or has_other_workers):
                self._order.expect(loaded.get("order"), self._tell_other_order)
        if self._sampler is None:
            return
        if not self._needs_record:
            self._sampler.record(None, pass_over=self._num_to_pass)
            return
        self._order = Order(lambda: self.note_fetch(0))
        self._sampler.record(self._order, pass_over=self._num_to_pass)
        if loaded is not None and self._before > 0 and not (self._is_other_job or self.ends_after(0)):
            self._order.expect(loaded.get("order"), self._tell_other_order)

    def after(self, batches: int) -> dict[str, Any]:
        """Return the position. It has the order of the samples if that is recorded, and streams if those are needed."""
        position = super().after(batches)
        if self._loaded is not None:
            return position
        more: dict[str, Any] = {"order": self._order.state_dict(), "at_ahead": self._at_ahead}
        if self._is_stream:
            more["num_workers"] = self._num_workers
        return {**position, **{name: value for name, value in more.items() if value is not None}}

    def fetch_ahead(self, iterator: Iterator[Any], batches: int) -> Any:
        """Fetch, and keep the streams of before if the batch ahead has drawn from them. Workers have their own."""
        # The first fetch also gets the first batch. A replay repeats it with the streams of the start of the epoch.
        is_first = self._before + batches == 0
        may_draw = self._num_workers == 0 and (self._needs_record or not self._is_fixed)
        before = raw_streams() if may_draw else None
        batch = super().fetch_ahead(iterator, batches)
        if before is not None:
            self._at_ahead = None if is_first or are_at(before) else streams_state(before)
        self._look_at(batch, is_first=is_first)
        return batch

    def load(self, at: Mapping[str, Any], *, where: Where) -> None:
        """Keep the position, in batches of this job. A partial batch is trained on twice, not skipped."""
        if self._is_stream:
            self._require_same_stream(at, where)
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
        """Pass over the first batches of *iterator*, then restore the streams that :meth:`begin` found."""
        if self.interrupted is not None:
            message = self._difference() if self._passes_over else self._cost()
            if message is not None:
                warnings.warn(message, stacklevel=3)
            if self._at_fetch is not None or self.is_disturbed:
                load_streams_state(self._at_fetch or self.at_begin)
            self._reach(iterator)
        super().fast_forward(iterator)

    def _reach(self, iterator: Iterator[Any]) -> None:
        """Take from *iterator* what its sampler does not pass over of the batches before the position."""
        num_fetched, price = 0, Price(self._before)
        # An iterator of Accelerate lets the sampler begin at its first fetch.
        while (num_done := num_fetched + self._num_passed_over()) < self._before:
            if self._at_ahead is not None and 0 < num_done == self._before - 1:
                load_streams_state(self._at_ahead)
            if (batch := next(iterator, MISSING)) is MISSING:
                raise ConfigError(
                    f"the training loader ended after {num_fetched + self._num_passed_over()} batches, but "
                    f"{self._before} of this epoch were trained on. Use the same data and batch size as before, or "
                    f"start a new run"
                )
            self._look_at(batch, is_first=num_fetched == 0)
            num_fetched += 1
            if not self._passes_over:
                price.fetched(num_fetched)

    def _require_same_stream(self, at: Mapping[str, Any], where: Where) -> None:
        """Raise :exc:`ConfigError` if the stream is divided in another way than before, so that its order differs."""
        numbers = [("num_workers", self._num_workers, at.get("num_workers", self._num_workers))]
        is_dealt_out = hasattr(self._loader, "slice_fn")  # by rank 0, which reads for all ranks
        if not is_dealt_out:
            numbers.append(("world_size", self._world_size, where.world_size))
        here, there = self._samples_per_step, at.get("batch_size")
        if self._num_workers > 0 and here is not None and there is not None:  # workers yield batches by turns
            numbers.append(("batch_size", here // self._world_size, there // where.world_size))
        require_same(numbers, "a stream")
        if self._world_size != where.world_size:
            warnings.warn(
                f"the stream is dealt out to {self._world_size} ranks now, and to {where.world_size} in the "
                f"checkpoint. Its samples keep their order, but the last step of a pass has others if the stream does "
                f"not divide into steps",
                stacklevel=4,
            )

    def _look_at(self, batch: Any, *, is_first: bool) -> None:
        """Record the first batch of a pass over a stream, whose samples have no index that could be compared."""
        if self._is_stream and is_first and batch is not MISSING:
            self._order.add(bytes_of(batch))

    def _num_passed_over(self) -> int:
        """Return the number of batches that the sampler has passed over, and let it begin if its iterator exists."""
        if self._sampler is None:
            return 0
        self._sampler.begin()
        return self._sampler.num_passed_over

    def _tell_other_order(self) -> None:
        found = "passed over" if self._passes_over else "fetched again"
        warnings.warn(
            f"the batches that were {found} are not those that were trained on, so some samples of this epoch "
            f"come twice or never. The order of the samples depends on something that training changes, "
            f"such as weights by loss. Let it depend on the seed and the epoch alone, or draw it at the begin of an "
            f"epoch and register it with a state_dict()",
            stacklevel=2,
        )

    def _difference(self) -> str | None:
        """Return what may differ because batches are passed over, or None if nothing can."""
        if self._is_fixed or not self._num_to_pass:
            return None
        drawn = "random numbers drawn in the workers, and " if self._num_workers > 0 else ""
        return (
            f"passing over {self._num_to_pass} batches without fetching them, as fast_forward='skip' says. If a sample "
            f"depends on more than its index, this differs from an uninterrupted training: {drawn}generators, "
            f"counters and other state of the data set, which begin anew"
        )

    def _cost(self) -> str:
        """Return the price of fetching, and the ways to go to the position at once, which depend on the data."""
        return f"fetching {self._before} batches again to find the position in the training data. {self._advice()}"

    def _advice(self) -> str:
        if has_shuffle_buffer(getattr(self._plain, "dataset", None)):
            return (
                "The state of a data set with a shuffle buffer lacks the content of the buffer. A torchdata "
                "StatefulDataLoader goes there at once if the data set shuffles its shards alone"
            )
        if hasattr(self._plain, "state_dict"):  # else it would not be counted
            return (
                "Rank 0 reads this StatefulDataLoader for all ranks. It goes there at once if each rank reads its own "
                "share, with Accelerate's dispatch_batches=False"
            )
        if streams(self._loader):
            return (
                "A torchdata StatefulDataLoader over a data set with state_dict() and load_state_dict() goes there at "
                "once"
            )
        skip = (
            "fast_forward='skip' (SPOT_FAST_FORWARD=skip) does not fetch them, and yields the same batches if a sample "
            "depends on its index alone. "
        )
        return f"{skip if self._can_pass_over else ''}A loader from spot_plugins.data.elastic_loader goes there at once"

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
