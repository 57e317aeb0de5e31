"""Plain PyTorch as the framework under a loop: what the program has registered is all that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..data import ElasticSampler, samplers
from ..loop import Framework, Words
from ..state.wrappers import plain_optimizer


class PlainPyTorch(Framework):
    """The objects of one loop."""

    words = Words(
        name="SpotLoop",
        before_resume="spot.register_model()",
        loaders_are="registered",
        unknown_loader=(
            "is not registered, so its position cannot be saved. Pass it to spot.register_loader(loader) before "
            "spot.resume()"
        ),
    )

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.all_optimizers: list[Optimizer] = []
        self.scalers: list[GradScaler] = []
        self.num_schedulers = 0
        self._loaders: list[Any] = []

    @property
    def world_size(self) -> int:
        """Processes of the default group of torch.distributed, or 1."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def loaders(self) -> list[Any]:
        """The registered loaders. The list is the program's."""
        return self._loaders

    @property
    def optimizers(self) -> list[Optimizer]:
        """The registered optimizers, without wrappers."""
        return [plain_optimizer(each) for each in self.all_optimizers]

    @property
    def batches_at_once(self) -> int:
        """
        Batches that all processes take at a time: one for each, unless an elastic sampler was bound to fewer replicas.

        With tensor parallelism several processes train on one batch.
        """
        found = (sampler for loader in self._loaders for sampler in samplers(loader))
        elastic = (sampler.num_replicas for sampler in found if isinstance(sampler, ElasticSampler))
        return next(elastic, self.world_size)

    def roots(self) -> Iterable[tuple[str, object]]:
        """Return the registered models and loaders, with their names."""
        return [*((f"model {index}", model) for index, model in enumerate(self.models)), *super().roots()]

    def count_tries(self, on_try: Callable[[], None]) -> None:
        """Call *on_try* for each step of an optimizer that a registered scaler makes or leaves out."""
        for scaler in self.scalers:
            _count_tries(scaler, on_try)


def _count_tries(scaler: Any, on_try: Callable[[], None]) -> None:
    def step(this: Any, *args: Any, **kwargs: Any) -> Any:
        on_try()
        return type(this).step(this, *args, **kwargs)

    scaler.step = MethodType(step, scaler)
