"""Tensors of which this rank holds a piece: as they are saved, and as they come back."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from ..format.boxes import Box, ShardBoxes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """The piece of a tensor that this rank holds; as a template, the piece that it wants back."""

    local: torch.Tensor
    """The elements: in the shape of the only box, or those of all boxes end to end, of shape ``(n,)``."""
    boxes: ShardBoxes
    dtensor: DTensor | None = None
    """The DTensor to which *local* belongs, if there is one."""
    on_host: bool = False
    """Of a template: True if :meth:`like` leaves the elements in host memory, because a part copies them later."""

    def like(self, local: torch.Tensor) -> torch.Tensor:
        """Return *local*, which was read for these boxes, as a DTensor if this shard belongs to one."""
        if self.dtensor is None:
            return local
        return relabelled(self.dtensor, local if self.on_host else local.to(self.dtensor.to_local().device))


def is_dtensor(value: Any) -> TypeIs[DTensor]:
    """Return whether *value* is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # costly to import; without it there are no DTensors
    return module is not None and isinstance(value, module.DTensor)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor that this rank holds of *tensor*, which may be a DTensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def memory_of(tensor: torch.Tensor) -> int:
    """Return the address of the memory that *tensor* and its views share."""
    return tensor.untyped_storage().data_ptr()


def relabelled(dtensor: DTensor, local: torch.Tensor) -> DTensor:
    """Return *local* as a tensor that is spread over the ranks like *dtensor*. It stays on its device."""
    described = type(dtensor).from_local(
        local.to("meta"),  # because from_local() copies everything else to the device of the mesh
        dtensor.device_mesh,
        dtensor.placements,
        run_check=False,
        shape=dtensor.shape,
        stride=dtensor.stride(),
    )
    return type(dtensor)(local, described._spec, requires_grad=False)


def shard_of(dtensor: DTensor) -> Shard:
    """
    Return this rank's piece of *dtensor*.

    Ranks along a mesh dimension over which it is replicated hold the same piece. All of this is known without any
    communication.

    Raises:
        ValueError: *dtensor* holds partial sums, or is cut so that a rank's elements do not lie side by side.
    """
    shape = tuple(dtensor.shape)
    return Shard(dtensor.to_local(), _boxes(dtensor.device_mesh, dtensor.placements, shape), dtensor)


def fill(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy to *tensor* the values of *whole*, to a DTensor this rank's piece of them. No gradient may be recorded."""
    if is_dtensor(tensor):
        (box,) = shard_of(tensor).boxes.held
        whole = whole[tuple(slice(first, first + n) for first, n in zip(box.offsets, box.lengths, strict=True))]
    local_tensor(tensor).copy_(whole)


@lru_cache(maxsize=10_000)  # called for every tensor in every save, while training waits
def _boxes(mesh: DeviceMesh, placements: tuple[Any, ...], shape: tuple[int, ...]) -> ShardBoxes:
    # The function that torch's own distributed checkpoints use. The import is costly, so it is not at the top.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this rank is not in its mesh")
    holders = mesh.mesh
    cut: dict[int, list[int]] = {}
    for dim in reversed(range(mesh.ndim)):
        if placements[dim].is_partial():
            raise ValueError(f"placements={placements} are sums that were not reduced yet")
        if not placements[dim].is_replicate():
            holders = holders.select(dim, coordinate[dim])
            cut.setdefault(placements[dim].dim % len(shape), []).append(mesh.size(dim))
    for dim, sizes in cut.items():
        if len(sizes) > 1 and shape[dim] % prod(sizes):
            raise ValueError(f"dimension {dim}, of {shape[dim]}, does not divide over the {sizes} ranks that share it")
    lengths, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return ShardBoxes(shape, (Box(tuple(offsets), tuple(lengths)),), _sorted(holders))


def _sorted(ranks: torch.Tensor) -> tuple[int, ...]:
    return tuple(sorted(ranks.flatten().tolist()))
