"""
The parameters of an optimizer, and the names under which their state is saved.

To an optimizer, a flat parameter of FSDP1 is one parameter. Its state is saved as that of the original parameters, so
it is cut into pieces when it is saved and put together when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import UnsafeStateError
from .fsdp1 import FlatPiece, flat_pieces
from .shard import is_dtensor
from .wrappers import clean_name


class NamedPiece(NamedTuple):
    """One original parameter, or what this rank holds of it inside a flat one."""

    name: str
    flat: FlatPiece | None = None
    """The piece of a flat parameter of FSDP1. None if the optimizer trains the original parameter itself."""


class Trained(NamedTuple):
    """One parameter of an optimizer, and the original parameters in it."""

    parameter: torch.Tensor
    pieces: list[NamedPiece]
    """One piece, or as many as there are original parameters in a flat one."""


def trained_by(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[list[Trained]]:
    """
    Return the parameters of *optimizer*, group by group and in its order, with their names in *module*.

    A parameter that *module* does not know is called ``unnamed.<group>.<index>``.
    """
    pieces: dict[int, list[NamedPiece]] = {}
    for flat in flat_pieces(module):
        pieces.setdefault(id(flat.owner), []).append(NamedPiece(flat.name, flat))
    for name, parameter in module.named_parameters(remove_duplicate=False):
        pieces.setdefault(id(parameter), [NamedPiece(clean_name(name))])  # tied weights: the first name
    return [
        [
            Trained(parameter, pieces.get(id(parameter), [NamedPiece(f"unnamed.{number}.{index}")]))
            for index, parameter in enumerate(group["params"])
        ]
        for number, group in enumerate(optimizer.param_groups)
    ]


def state_of_piece(state: Any, parameter: torch.Tensor, piece: NamedPiece) -> Any:
    """
    Return the state of *piece*, taken from the *state* of *parameter*.

    Raises:
        UnsafeStateError: A DTensor in the state does not have the shape of *parameter*.
    """
    if not isinstance(state, dict):
        return state
    of_piece = {}
    for key, value in state.items():
        if is_dtensor(value) and value.shape != parameter.shape:
            raise UnsafeStateError(f"{piece.name}/{key}", "DTensor of another shape than its parameter")
        if piece.flat is not None and isinstance(value, torch.Tensor):
            has_all = value.numel() == parameter.numel() and value.ndim
            value = piece.flat.shard(value) if has_all else piece.flat.common(value)
        of_piece[key] = value
    return of_piece


def state_of_parameter(saved: Mapping[str, Any], trained: Trained) -> Any:
    """
    Return the state of a parameter, put together from the *saved* state of its pieces, by their names.

    Returns:
        The state; None if there is none, or if this rank holds no element of the parameter.
    """
    parameter, pieces = trained
    if not saved:
        return None
    flat = [(saved[name], piece) for name, piece in pieces if piece is not None and name in saved]
    if not flat:
        return saved[pieces[0].name]
    if parameter.numel() == 0:
        return None
    held = [(state, piece) for state, piece in flat if piece.stop > piece.start] or flat
    state = copy(held[0][0])
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.ndim and value.numel() == held[0][1].stop - held[0][1].start:
            together = torch.zeros(parameter.numel(), dtype=value.dtype)
            for of_piece, piece in held:
                together[piece.start : piece.stop] = of_piece[key].reshape(-1)
            state[key] = together.view(parameter.shape)
    return state
