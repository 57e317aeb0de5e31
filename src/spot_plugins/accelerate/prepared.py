"""The objects that an ``Accelerator`` has prepared, as parts to save."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from ..errors import ConfigError
from ..state import ModelPart, OptimizerPart
from ..state.part import Part
from . import internals

logger = logging.getLogger(__name__)

_SUPPORTED: Final = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A part to register with the session, with its name."""

    name: str
    part: Part


def check_supported(accelerator: Accelerator) -> None:
    """Raise :exc:`ConfigError` if the state is kept in a form that cannot be saved."""
    kind = accelerator.distributed_type
    parallelism = accelerator.parallelism_config
    data_parallel = parallelism is None or (
        parallelism.total_size == parallelism.dp_replicate_size * parallelism.dp_shard_size
    )
    if kind not in _SUPPORTED or not data_parallel:
        raise ConfigError(
            f"distributed_type={kind.value} with {parallelism or 'no parallelism_config'} cannot be saved. Use one "
            f"process, DDP or FSDP, without tensor, context or sequence parallelism"
        )
    num_started = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_started != accelerator.num_processes:
        raise ConfigError(
            f"num_processes={accelerator.num_processes}, but torch.distributed has {num_started} processes, "
            f"so each process would train alone and save only a part of the state. On CPUs set "
            f"ACCELERATE_USE_CPU=true before the start; elsewhere let Accelerate initialize the process group"
        )


def prepared_parts(accelerator: Accelerator, registered: list[Any], *, keep_batch: bool) -> Iterator[NamedPart]:
    """
    Yield a part for each model, optimizer and scheduler, in the order in which they were prepared.

    Args:
        accelerator: After ``prepare``.
        registered: Parts that the user has registered.
        keep_batch: Change gradient accumulation so that it makes up for another number of processes.

    Raises:
        ConfigError: Nothing was prepared, or something that is trained would not be saved.
    """
    if not internals.models(accelerator) and not registered and not internals.custom_objects(accelerator):
        raise ConfigError(
            "no model is prepared, so there is nothing to save: call accelerator.prepare(...) before spot.resume()"
        )
    _check_owners(accelerator, registered)
    for index, model in enumerate(internals.models(accelerator)):
        yield NamedPart(f"model-{index}", ModelPart(model))
    for index, optimizer in enumerate(internals.optimizers(accelerator)):
        part = OptimizerPart(optimizer, _model_of(optimizer, accelerator))
        yield NamedPart(f"optimizer-{index}", part)
    for index, scheduler in enumerate(internals.schedulers(accelerator)):
        yield NamedPart(f"scheduler-{index}", scheduler)
    for index, custom in enumerate(internals.custom_objects(accelerator)):
        yield NamedPart(f"custom-{index}", custom)
    if accelerator.scaler is not None:
        yield NamedPart("scaler", accelerator.scaler)
    yield NamedPart("accelerator", CountersPart(accelerator, keep_batch=keep_batch))


def num_prepared(accelerator: Accelerator) -> int:
    """Return the number of objects whose state has to be saved. Loaders do not count."""
    kinds = (internals.models, internals.optimizers, internals.schedulers, internals.custom_objects)
    return sum(len(kind(accelerator)) for kind in kinds)


class CountersPart:
    """
    The counters of Accelerate: batches within gradient accumulation, and passes over each loader.

    The number of passes decides the order of a loader that shuffles, for example of a validation loader that is used
    without ``spot.batches``.

    If the number of processes has changed and *keep_batch* is true, gradient accumulation is changed too, so that an
    optimizer step is made of as many batches over all processes as before. This needs a number that divides.
    """

    def __init__(self, accelerator: Accelerator, *, keep_batch: bool) -> None:
        self._accelerator = accelerator
        self._keep_batch = keep_batch
        self._configured = accelerator.gradient_accumulation_steps
        self._batches_per_step = self._configured * accelerator.num_processes

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        iterations = [getattr(loader, "iteration", 0) for loader in internals.loaders(self._accelerator)]
        return {
            "step": self._accelerator.step,
            "iterations": iterations,
            "configured": self._configured,
            "batches_per_step": self._batches_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters. A loader that is new to the run keeps its own."""
        self._accelerator.step = state["step"]
        for loader, iteration in zip(internals.loaders(self._accelerator), state["iterations"], strict=False):
            loader.iteration = iteration
        if self._keep_batch and state["configured"] == self._configured:
            self._keep_batches_per_step(state["batches_per_step"])

    def _keep_batches_per_step(self, before: int) -> None:
        here, num_processes = self._batches_per_step, self._accelerator.num_processes
        self._batches_per_step = before
        if before == here:
            return
        self._accelerator.step = 0  # the batches counted so far belong to a window of another size
        if before % num_processes:
            warnings.warn(
                f"an optimizer step is made of {here} batches now instead of {before}, which do not divide over "
                f"{num_processes} processes",
                stacklevel=2,
            )
            return
        self._accelerator.gradient_accumulation_steps = before // num_processes
        if self._accelerator.is_main_process:
            logger.info(
                "gradient_accumulation_steps=%s on %s processes: an optimizer step is made of %s batches, as before",
                before // num_processes,
                num_processes,
                before,
            )


def _model_of(optimizer: Any, accelerator: Accelerator) -> nn.Module:
    """Return the model that gives the parameters of *optimizer* their names: the first that has one of them."""
    trained = set(_parameters_of(optimizer))
    for model in internals.models(accelerator):
        if not trained.isdisjoint(model.parameters()):
            return model  # type: ignore[no-any-return]
    return nn.Module()


def _check_owners(accelerator: Accelerator, registered: list[Any]) -> None:
    modules = [*internals.models(accelerator), *internals.custom_objects(accelerator), *registered]
    saved = {parameter for module in modules if isinstance(module, nn.Module) for parameter in module.parameters()}
    for index, optimizer in enumerate(internals.optimizers(accelerator)):
        num_lost = sum(parameter not in saved for parameter in _parameters_of(optimizer))
        if num_lost:
            raise ConfigError(
                f"optimizer {index} trains {num_lost} parameters of no prepared model, so they would not be saved. "
                f"Pass their module to accelerator.prepare(), or to spot.register(name, module)"
            )


def _parameters_of(optimizer: Any) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
