"""The view of Accelerate on a training, for the guard that looks for things that are not saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from accelerate import Accelerator

from ..guard import Host, Kind
from . import facts, internals
from .position import PositionPart
from .told import Told

_OBJECT: Final = "pass {} to accelerator.prepare() or to spot.register(name, object), before spot.resume()"
_STATE: Final = "keep {} in an object with state_dict() and load_state_dict(), and spot.register() it"

REMEDIES: Final = {
    Kind.OPTIMIZER: _OBJECT.format("optimizers"),
    Kind.SCHEDULER: _OBJECT.format("schedulers"),
    Kind.MODULE: _OBJECT.format("modules"),
    Kind.TENSORS: _STATE.format("tensors"),
    Kind.GENERATOR: _STATE.format("generators"),
    Kind.SCALER: "let the Accelerator scale gradients (mixed_precision='fp16'), or spot.register('scaler', scaler)",
    Kind.LOADER: "pass the loader to accelerator.prepare(), and iterate over spot.batches(loader)",
}


def host_of(
    accelerator: Accelerator, position: PositionPart, told: Told, remedies: Mapping[Kind, str] = REMEDIES
) -> Host:
    """
    Return the view on a loop.

    Args:
        accelerator: Prepares the objects of the loop.
        position: Tracks the loaders of the loop.
        told: The warnings that the loop gets otherwise.
        remedies: The advice for each kind of thing that is not saved.
    """

    def roots() -> Iterator[tuple[str, object]]:
        for name, found in (("model", internals.models), ("loader", internals.loaders)):
            for index, each in enumerate(found(accelerator)):
                yield f"{name} {index}", each

    def named() -> list[object]:
        return list(told.things)

    loaders, log_level = position.begun_loaders, facts.host_level
    return Host(remedies=remedies, roots=roots, loaders=loaders, named=named, log_level=log_level, is_bare=False)
