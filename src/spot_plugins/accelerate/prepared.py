"""The objects that an ``Accelerator`` has prepared, as parts to save."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, Final

import accelerate
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..loop.saved import NamedPart, Saved, check_owners, parameters_of
from ..loop.told import Told
from ..program import Program
from ..state import ModelPart, OptimizerPart
from ..state.wrappers import plain_module
from . import internals
from .counters import CountersPart
from .schedules import Schedules

_SUPPORTED: Final = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


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


def prepared_parts(accelerator: Accelerator, registered: list[Any]) -> Iterator[NamedPart]:
    """
    Yield a part for each model, optimizer and scheduler, in the order in which they were prepared.

    Args:
        accelerator: After ``prepare``.
        registered: Parts that the user has registered.

    Raises:
        ConfigError: Nothing was prepared, or something that is trained would not be saved.
    """
    if not internals.models(accelerator) and not registered and not internals.custom_objects(accelerator):
        raise ConfigError(
            "no model is prepared, so there is nothing to save: call accelerator.prepare(...) before spot.resume()"
        )
    modules = [*internals.models(accelerator), *internals.custom_objects(accelerator), *registered]
    remedy = (
        "no prepared model, so they would not be saved. Pass their module to accelerator.prepare(), or to "
        "spot.register(name, module)"
    )
    check_owners(internals.optimizers(accelerator), modules, remedy)
    for index, model in enumerate(internals.models(accelerator)):
        yield NamedPart(f"model-{index}", ModelPart(_in_ddp(model, accelerator)))
    for index, optimizer in enumerate(internals.optimizers(accelerator)):
        part = OptimizerPart(optimizer, _model_of(optimizer, accelerator))
        yield NamedPart(f"optimizer-{index}", part)
    for index, scheduler in enumerate(internals.schedulers(accelerator)):
        yield NamedPart(f"scheduler-{index}", scheduler)
    for index, custom in enumerate(internals.custom_objects(accelerator)):
        yield NamedPart(f"custom-{index}", custom)
    if accelerator.scaler is not None:
        yield NamedPart("scaler", accelerator.scaler)


class Prepared(Saved):
    """
    Everything that an accelerator has prepared, at the time of the resume.

    Args:
        accelerator: After ``prepare``.
        registered: Parts that the user has registered.
        told: The warnings of the loop.
        say: Shows a line to the user.
        keep_batch: Change gradient accumulation so that it makes up for another number of processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        registered: list[Any],
        told: Told,
        say: Callable[[str], None],
        *,
        keep_batch: bool,
    ) -> None:
        self._accelerator = accelerator
        self._registered = registered
        self._schedules = Schedules(accelerator, registered, told)
        self._counters = CountersPart(accelerator, self._schedules, say, keep_batch=keep_batch)
        self._number = _num_prepared(accelerator)
        self._has_ended_batch = False

    def parts(self) -> list[NamedPart]:
        """
        Return what there is to save.

        Raises:
            ConfigError: Nothing was prepared, or something that is trained would not be saved.
        """
        parts = [*prepared_parts(self._accelerator, self._registered), NamedPart("accelerator", self._counters)]
        self._schedules.find()
        return parts

    def describe(self, program: Program) -> None:
        """Describe the settings of Accelerate to *program*."""
        program.add_versions(accelerate=accelerate.__version__)
        program.add_settings(
            prepared_loaders=len(internals.loaders(self._accelerator)),  # a loader is known by its number
            mixed_precision=self._accelerator.mixed_precision,
            gradient_accumulation_steps=self._accelerator.gradient_accumulation_steps,
        )

    def resume(self, step: int) -> None:
        """Let accumulation and schedules continue after *step*. Call it after everything was loaded."""
        self._counters.resume(step)

    def end_batch(self) -> None:
        """Take note that a batch has ended. The first time, look for what was made too late."""
        self._counters.end_batch()
        if not self._has_ended_batch:
            self._has_ended_batch = True
            self._schedules.name_late()

    def check_none_is_late(self) -> None:
        """Raise :exc:`ConfigError` if anything was prepared after the resume."""
        num_late = _num_prepared(self._accelerator) - self._number
        if num_late > 0:
            raise ConfigError(
                f"{num_late} models, optimizers or schedulers were prepared after spot.resume(), so they are neither "
                f"restored nor saved. Prepare everything before"
            )


def _num_prepared(accelerator: Accelerator) -> int:
    """Return the number of objects whose state has to be saved. Loaders do not count."""
    kinds = (internals.models, internals.optimizers, internals.schedulers, internals.custom_objects)
    return sum(len(kind(accelerator)) for kind in kinds)


def _in_ddp(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the wrapper of DDP around *model*, which Accelerate gives to the program alone, or *model* itself."""
    if accelerator.num_processes < 3 or accelerator.distributed_type is DistributedType.FSDP:
        return model  # the search takes some 50 ms
    # type(), because isinstance() would also ask lazy objects of other libraries, which then import something.
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
    whole = [each for each in wrappers if hasattr(each, "module")]  # the constructor of others has failed
    return next((each for each in whole if plain_module(each) is plain_module(model)), model)


def _model_of(optimizer: Any, accelerator: Accelerator) -> nn.Module:
    """Return the model that gives the parameters of *optimizer* their names: the first that has one of them."""
    trained = set(parameters_of(optimizer))
    for model in internals.models(accelerator):
        if not trained.isdisjoint(model.parameters()):
            return model  # type: ignore[no-any-return]
    return nn.Module()
