"""The framework under a training loop, as far as the loop has to know it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from ..monitor.scalars import Scalars


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The words of a host, for errors of every loop."""

    name: str
    """The class that the program makes, such as SpotHook."""

    before_resume: str
    """The call that comes before ``spot.resume()``."""

    loaders_are: str
    """The word for what the program has done with loaders, such as prepared."""

    unknown_loader: str
    """The reason why the position of a loader cannot be saved, and the remedy, after the name of its class."""


class Framework:
    """
    The framework under a training loop. This one is plain PyTorch; a host overrides what its framework does itself.

    A loader is known by its number in :attr:`loaders`.
    """

    words: Words
    fetches_ahead = False
    """True if an iterator of a loader fetches one batch ahead of those that it yields."""
    has_trackers = False
    """True if the framework may have trackers, which get the figures of the run."""

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        raise NotImplementedError

    @property
    def loaders(self) -> list[Any]:
        """The loaders whose positions can be saved, in the order in which the program named them."""
        raise NotImplementedError

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of torch that train."""
        raise NotImplementedError

    @property
    def is_accumulating(self) -> bool:
        """True if the framework itself knows that gradients of the last batch wait for those of others."""
        return False

    @property
    def active_loaders(self) -> list[Any]:
        """The loaders that the framework believes to be in use."""
        return []

    @active_loaders.setter
    def active_loaders(self, active: list[Any]) -> None:
        pass

    def deactivate(self, loader: Any) -> None:
        """Let *loader* be none of the active loaders, as if its iteration had ended."""
        active = self.active_loaders
        if any(each is loader for each in active):
            self.active_loaders = [each for each in active if each is not loader]

    def end_window(self, loader: Any) -> None:
        """Let the last batch of *loader* end a window of accumulation, because the program wants no more of them."""

    def batches_left(self, loader: Any, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield what *iterator* of *loader* yields after a resume, maybe nothing."""
        return iterator

    def roots(self) -> Iterable[tuple[str, object]]:
        """Return names and objects in which the guard looks for others that train, beside variables of the program."""
        return [(f"loader {index}", loader) for index, loader in enumerate(self.loaders)]

    def log_level(self) -> int:
        """Return the lowest level of logging that the framework shows."""
        return logging.NOTSET

    def count_tries(self, on_try: Callable[[], None]) -> None:
        """Call *on_try* for each step of an optimizer that a gradient scaler may leave out."""

    def write_scalars(self, scalars: Scalars) -> None:
        """Write the figures of the run to the trackers, if a step was stored."""
