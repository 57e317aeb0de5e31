"""Tensors of which this rank holds a part: as they are saved, and as they come back."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..placement import Box, Placement, whole

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """The part of a tensor that this rank holds, or, as a template, the part that it wants back."""

    local: torch.Tensor
    """The elements: of the shape of the only box, or those of all boxes end to end, of shape ``(n,)``."""
    placement: Placement
    dtensor: DTensor | None = None
    """What *local* is part of, if that is a DTensor."""

    def like(self, local: torch.Tensor) -> torch.Tensor:
        """Return *local*, which was read for this placement, as the kind of tensor that the part deals in."""
        return local if self.dtensor is None else relabelled(self.dtensor, local)


def is_dtensor(value: Any) -> TypeIs[DTensor]:
    """Whether *value* is a DTensor. Who has none need not import them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of this rank that *tensor*, a DTensor or not, stands for."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def relabelled(dtensor: DTensor, local: torch.Tensor) -> DTensor:
    """Return *local* as a tensor that is spread over the ranks like *dtensor*."""
    return type(dtensor).from_local(
        local.to(dtensor.to_local().device),
        dtensor.device_mesh,
        dtensor.placements,
        run_check=False,
        shape=dtensor.shape,
        stride=dtensor.stride(),
    )


def shard_of(dtensor: DTensor) -> Shard:
    """
    Return this rank's part of *dtensor*.

    Ranks along mesh dimensions over which it is replicated hold the same part; no communication is needed to know that.

    Raises:
        ValueError: It holds partial sums, or is cut such that a rank's elements do not lie side by side.
    """
    shape, mesh, placements = tuple(dtensor.shape), dtensor.device_mesh, dtensor.placements
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this rank is not in its mesh")
    for placement in placements:
        if placement.is_partial():
            raise ValueError(f"placements={placements} are sums that were not reduced yet")
    ranks = mesh.mesh
    for dim in reversed(range(mesh.ndim)):
        if not placements[dim].is_replicate():
            ranks = ranks.select(dim, coordinate[dim])
    holders = _sorted(ranks)
    box = _box(dtensor)
    local = dtensor.to_local()
    if dtensor.numel() == 0:
        return Shard(
            local.reshape(shape), Placement(shape, (whole(shape),), tuple(sorted(mesh.mesh.flatten().tolist())))
        )
    return Shard(local, Placement(shape, (box,) if box.num_elements else (), holders), dtensor)


def _box(dtensor: DTensor) -> Box:
    shape, mesh, placements = dtensor.shape, dtensor.device_mesh, dtensor.placements
    (chunk,) = dtensor.__create_chunk_list__()  # type: ignore[no-untyped-call] # as torch's own distributed checkpoints ask it
    cut: dict[int, list[int]] = {}
    for dim, placement in enumerate(placements):
        if not placement.is_replicate():
            cut.setdefault(placement.dim % len(shape), []).append(mesh.size(dim))  # type: ignore[attr-defined]
    for dim, sizes in cut.items():
        if len(sizes) > 1 and shape[dim] % torch.Size(sizes).numel():
            raise ValueError(f"dimension {dim}, of {shape[dim]}, does not divide over the {sizes} ranks that share it")
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def _sorted(ranks: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(ranks.flatten().tolist()))
