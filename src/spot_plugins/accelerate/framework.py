"""Accelerate, as far as a loop has to know it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any

from accelerate import Accelerator
from torch.optim import Optimizer

from ..loop import Framework, Words
from ..monitor.scalars import Scalars
from . import internals


class AccelerateFramework(Framework):
    """The view of a loop on its *accelerator*."""

    words = Words(
        name="SpotHook",
        before_resume="accelerator.prepare()",
        loaders_are="prepared",
        unknown_loader=(
            "is not prepared, so its position cannot be saved. Pass the loader that accelerator.prepare(loader) "
            "returned"
        ),
    )
    fetches_ahead = True
    has_trackers = True

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return int(self._accelerator.num_processes)

    @property
    def loaders(self) -> list[Any]:
        """The prepared loaders."""
        return internals.loaders(self._accelerator)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers inside the prepared ones, and those that were registered for checkpointing."""
        prepared = [each.optimizer for each in internals.optimizers(self._accelerator)]
        return prepared + [each for each in internals.custom_objects(self._accelerator) if isinstance(each, Optimizer)]

    @property
    def is_accumulating(self) -> bool:
        """True if Accelerate accumulates the gradients of the last batch."""
        return not self._accelerator.sync_gradients

    @property
    def active_loaders(self) -> list[Any]:
        """The loaders whose iteration has begun and not ended, as Accelerate counts them."""
        return internals.active_loaders(self._accelerator)

    @active_loaders.setter
    def active_loaders(self, active: list[Any]) -> None:
        internals.set_active_loaders(self._accelerator, active)

    def end_window(self, loader: Any) -> None:
        """Let Accelerate take the last batch of *loader* for the last one of its epoch."""
        loader.end_of_dataloader = True

    def batches_left(self, loader: Any, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield what *iterator* of *loader* yields after a resume, maybe nothing."""
        return internals.batches_left(loader, iterator)

    def roots(self) -> Iterable[tuple[str, object]]:
        """Return the prepared models and loaders, with their names."""
        models = [(f"model {index}", model) for index, model in enumerate(internals.models(self._accelerator))]
        return [*models, *super().roots()]

    def log_level(self) -> int:
        """Return the lowest level that Accelerate shows: by its variable, or by the level of its logger."""
        word = os.environ.get("ACCELERATE_LOG_LEVEL", "").upper()
        level = logging.getLevelName(word)
        return max(level if isinstance(level, int) else logging.NOTSET, logging.getLogger("accelerate").level)

    def count_tries(self, on_try: Callable[[], None]) -> None:
        """Call *on_try* for each step of a prepared optimizer that has a scaler."""
        for each in internals.optimizers(self._accelerator):
            if each.scaler is not None:
                _count_tries(each, on_try)

    def write_scalars(self, scalars: Scalars) -> None:
        """Write the figures of the run, if a step was stored. A ``Trainer`` has no trackers here and logs itself."""
        if self._accelerator.trackers:
            scalars.write(self._log)

    def _log(self, values: dict[str, float], step: int) -> None:
        for tracker in self._accelerator.trackers:
            if tracker.name == "wandb":  # it drops values of an older step than its newest. These join the next ones
                tracker.log(values, commit=False)
            else:
                tracker.log(values, step=step)


def _count_tries(wrapped: Any, on_try: Callable[[], None]) -> None:
    """Call *on_try* for each step of Accelerate's *wrapped* optimizer."""

    def step(this: Any, closure: Any = None) -> None:
        on_try()
        type(this).step(this, closure)

    wrapped.step = MethodType(step, wrapped)  # a method, because torch's schedulers wrap its __func__
