"""Positions in a loader that keeps none itself: its batches are counted, and fetched again after a resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError
from .replayed import MISSING, Replayed


class Counted(Replayed):
    """Position that is reached again by fetching the batches that were trained on and throwing them away."""

    kind = "counted"

    def load(self, at: Mapping[str, Any], *, epoch: int, world_size: int) -> None:
        """Keep the position, in batches of this number of ranks. A partial batch is trained on twice, not skipped."""
        batches = at["batches"] * world_size // self._world_size
        super().load({**at, "batches": batches}, epoch=epoch, world_size=world_size)

    def fast_forward(self, iterator: Iterator[Any]) -> None:
        """Throw away the first batches of *iterator*, then restore the streams that :meth:`begin` found."""
        if self._interrupted is not None:
            warnings.warn(
                f"fetching {self._before} batches again to find the position in the training data. A loader "
                f"from spot_plugins.data.elastic_loader goes there at once",
                stacklevel=3,
            )
            for number in range(self._before):
                if next(iterator, MISSING) is MISSING:
                    raise ConfigError(
                        f"the training loader ended after {number} batches, but {self._before} of this epoch "
                        f"were trained on. Use the same data and batch size as before, or start a new run"
                    )
        super().fast_forward(iterator)
