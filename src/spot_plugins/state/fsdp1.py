"""
The flat parameters of FSDP1, described as pieces of the original parameters.

FSDP1 lays the parameters of a module end to end and cuts the result into one range of equal length per rank. A cut may
fall inside a parameter. FSDP1's own ``state_dict`` gathers all ranges and cuts them anew, with a collective for each
module. This module describes each rank's range as it lies, without communication. All private attributes of FSDP1 are
in this module; ``tests/multiprocess`` checks that they mean what is assumed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.distributed import get_process_group_ranks, get_rank

from ..format.boxes import ShardBoxes, range_boxes, whole
from .shard import Shard
from .wrappers import clean_name

_EXTRA: Final = "_extra_state"  # torch's key for the result of get_extra_state()


class FlatPiece(NamedTuple):
    """The elements that this rank holds of one original parameter."""

    name: str
    """The name of the original parameter without FSDP."""
    owner: nn.Parameter
    """The parameter that an optimizer trains: the flat one, or with ``use_orig_params`` the original one."""
    start: int
    stop: int
    """The range of the elements in *owner*, flattened. It is the same in all state of the owner's size."""
    values: torch.Tensor
    """The elements, of shape ``(stop - start,)``."""
    boxes: ShardBoxes

    def shard(self, tensor: torch.Tensor) -> Shard:
        """Return the elements of this piece in *tensor*, which is as large as *owner*."""
        return Shard(tensor.detach().reshape(-1)[self.start : self.stop], self.boxes)

    def common(self, tensor: torch.Tensor) -> Shard:
        """
        Return *tensor*, state that is equal on all ranks that hold an element of the parameter.

        Each of these ranks stores it, because no rank knows which others hold an element.
        """
        shape = tuple(tensor.shape)
        return Shard(tensor.detach(), ShardBoxes(shape, (whole(shape),), (get_rank(),)))


def is_flat(module: nn.Module) -> bool:
    """Return whether FSDP1 has flattened parameters in *module*."""
    return next(_handles(module), None) is not None


def flat_pieces(module: nn.Module) -> list[FlatPiece]:
    """Return the pieces of all parameters that FSDP1 has flattened in *module*, also empty ones."""
    return [piece for prefix, state, handle in _handles(module) for piece in _pieces_of(prefix, state, handle)]


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that are used more than once, each with the first name."""
    tied: dict[str, str] = {}
    for prefix, _, handle in _handles(module):
        for param, _, module_name, first, _, first_module in handle.flat_param._shared_param_infos:
            name, first_name = (".".join(filter(None, path)) for path in ((module_name, param), (first_module, first)))
            tied[clean_name(prefix + name)] = clean_name(prefix + first_name)
    return tied


def flat_model_state(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return parameters, buffers and extra state of *module*, which has flat parameters, by their plain names."""
    pieces = flat_pieces(module)
    parameters: dict[str, Any] = {piece.name: Shard(piece.values, piece.boxes) for piece in pieces}
    parameters |= {name: parameters[first] for name, first in tied_names(module).items()}
    flattened = {id(piece.owner) for piece in pieces}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in flattened and clean_name(name) not in parameters:  # in a module that FSDP ignores
            parameters[clean_name(name)] = parameter.detach()
    buffers: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for prefix, child in module.named_modules(remove_duplicate=False):
        path = clean_name(f"{prefix}." if prefix else "")
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
            if name not in child._non_persistent_buffers_set:
                buffers[path + name] = buffer.detach()
        if type(child).get_extra_state is not nn.Module.get_extra_state:
            extra[path + _EXTRA] = child.get_extra_state()
    return {"parameters": parameters, "buffers": buffers, "extra": extra}


def load_extra_state(module: nn.Module, extra: Mapping[str, Any]) -> None:
    """Give each submodule of *module* its *extra* state back."""
    for prefix, child in module.named_modules(remove_duplicate=False):
        key = clean_name(f"{prefix}." if prefix else "") + _EXTRA
        if key in extra and type(child).get_extra_state is not nn.Module.get_extra_state:
            child.set_extra_state(extra[key])


def _handles(module: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name (with a dot), the FSDP state and the handle of every module that FSDP1 has flattened."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # costly to import; without it there are no such modules
    if fsdp is None:
        return
    for name, child in module.named_modules():
        if isinstance(child, fsdp.FullyShardedDataParallel) and (handle := child._handle) is not None:
            yield f"{name}." if name else "", child, handle


def _pieces_of(prefix: str, state: Any, handle: Any) -> Iterator[FlatPiece]:
    flat = handle.flat_param
    # The trained elements. During a forward pass the flat parameter itself holds those of all ranks.
    trained = getattr(flat, "_local_shard", None)
    trained = flat.detach() if trained is None else trained.detach()
    holders = _holders(state, handle)
    originals = flat._params or [None] * len(flat._fqns)
    for fqn, shape, info, original in zip(flat._fqns, flat._shapes, flat._shard_param_infos, originals, strict=True):
        start, stop = (info.offset_in_shard, info.offset_in_shard + info.numel_in_shard) if info.in_shard else (0, 0)
        first, last = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
        yield FlatPiece(
            name=clean_name(prefix + fqn),
            owner=flat if original is None else original,
            start=0 if original is not None else start,
            stop=stop if original is None else stop - start,
            values=trained[start:stop],
            boxes=ShardBoxes(tuple(shape), range_boxes(tuple(shape), first, last), holders),
        )


def _holders(state: Any, handle: Any) -> tuple[int, ...]:
    """Return the ranks that hold the same range: with replicas one rank in each of them, unsharded all ranks."""
    if not handle.uses_sharded_strategy:
        return tuple(sorted(get_process_group_ranks(state.process_group)))
    replicas = getattr(state, "_inter_node_pg", None)
    return (get_rank(),) if replicas is None else tuple(sorted(get_process_group_ranks(replicas)))
