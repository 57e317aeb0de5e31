"""
Private names of Accelerate that this package uses, each in a small function.

Checked against accelerate 1.15. :func:`check` runs when a hook is made and names the attribute that an installed
version lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from accelerate import Accelerator

from ..data.internals import Library, check_torch

ACCELERATE: Final = Library(package="accelerate", checked="1.15.*")

ACCELERATOR_ATTRIBUTES: Final = ("_models", "_optimizers", "_schedulers", "_dataloaders", "_custom_objects")
"""Attributes of an accelerator that the functions below read."""


def check(accelerator: Accelerator) -> None:
    """
    Check that the installed Accelerate has every private attribute that this module uses.

    It looks at the attributes and never compares versions, so that a newer version that kept them works.

    Raises:
        ConfigError: An attribute is missing. The error names it and the version to install.
    """
    check_torch()
    ACCELERATE.require("Accelerator", accelerator, ACCELERATOR_ATTRIBUTES)


def models(accelerator: Accelerator) -> list[Any]:
    """Return the models, in the order in which they were prepared."""
    return list(accelerator._models)


def optimizers(accelerator: Accelerator) -> list[Any]:
    """Return Accelerate's wrappers of the optimizers, in the order in which they were prepared."""
    return list(accelerator._optimizers)


def schedulers(accelerator: Accelerator) -> list[Any]:
    """Return the schedulers, in the order in which they were prepared."""
    return list(accelerator._schedulers)


def loaders(accelerator: Accelerator) -> list[Any]:
    """Return the loaders, in the order in which they were prepared."""
    return list(accelerator._dataloaders)


def batches_left(loader: Any, iterator: Iterator[Any]) -> Iterator[Any]:
    """
    Yield what *iterator* of *loader* yields after a resume, maybe nothing.

    Accelerate raises an error if a stream that rank 0 reads for all has no batch. A resume at its end is such a case.
    """
    try:
        first = next(iterator)
    except StopIteration:
        return
    except ValueError as error:
        if "Batch does not contain any data" not in str(error):
            raise
        loader.end()
        return
    yield first
    yield from iterator


def custom_objects(accelerator: Accelerator) -> list[Any]:
    """Return what ``register_for_checkpointing`` was given, in that order."""
    return list(accelerator._custom_objects)


def active_loaders(accelerator: Accelerator) -> list[Any]:
    """Return the loaders whose iteration has begun and not ended. The last one decides the end of a window."""
    return list(accelerator.gradient_state.dataloader_references)


def set_active_loaders(accelerator: Accelerator, active: list[Any]) -> None:
    """Make *active*, a result of :func:`active_loaders`, the loaders whose iteration has begun and not ended."""
    accelerator.gradient_state.dataloader_references = active


def steps_counted(scheduler: Any) -> int | None:
    """Return the number of steps of torch's *scheduler*, as it counts them itself. None if it does not."""
    return getattr(scheduler, "_step_count", None)


def add_to_steps_counted(scheduler: Any, number: int) -> None:
    """Add to the steps that torch's *scheduler* has counted, as Accelerate does within accumulation."""
    scheduler._step_count += number


def inner_schedulers(scheduler: Any) -> list[Any]:
    """Return the schedulers of which torch's *scheduler* consists, or none."""
    return list(getattr(scheduler, "_schedulers", ()))


def has_scheduler(optimizer: Any) -> bool:
    """Return True if a scheduler of torch is bound to *optimizer*, or was. torch marks its ``step``."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")
