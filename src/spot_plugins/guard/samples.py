"""Small samples of state, by which a later look sees that the state has changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..state.shard import is_dtensor, local_tensor, memory_of

MAX_ELEMENTS: Final = 1024
MAX_TENSORS: Final = 32

GENERATORS: Final = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""The classes of random generators that can be found out to have been drawn from."""


def is_plain(tensor: Any) -> bool:
    """Return True if *tensor* has values in the memory of this process, also as the local part of a DTensor."""
    if is_dtensor(tensor):
        tensor = local_tensor(tensor)
    is_known = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    return is_known and tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.numel() > 0


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Return the plain tensors that *optimizer* trains."""
    return [each for group in optimizer.param_groups for each in group["params"] if is_plain(each)]


def memory(tensor: torch.Tensor) -> int:
    """Return the address of the memory of a plain *tensor*."""
    return memory_of(local_tensor(tensor))


def sample_of(tensor: torch.Tensor) -> bytes:
    """Return up to 1024 elements of a plain *tensor*, evenly spread, as bytes."""
    flat = local_tensor(tensor).detach().reshape(-1)
    stride = -(-flat.numel() // MAX_ELEMENTS)
    return flat[::stride].cpu().contiguous().view(torch.uint8).numpy().tobytes()


def samples_of(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """Return samples of up to 32 of *tensors*, evenly spread."""
    stride = max(1, -(-len(tensors) // MAX_TENSORS))
    return [sample_of(tensor) for tensor in tensors[::stride]]


def state_of(generator: Any) -> object:
    """Return the state of a random *generator* in a form that can be compared."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return comparable(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return comparable(generator.get_state(legacy=False))
    return comparable(generator.bit_generator.state)


def comparable(state: Any) -> object:
    """Return nested plain values of *state*, with arrays and tensors as bytes."""
    if isinstance(state, dict):
        return tuple(sorted((str(key), comparable(value)) for key, value in state.items()))
    if isinstance(state, (list, tuple)):
        return tuple(comparable(value) for value in state)
    if isinstance(state, torch.Tensor):
        state = state.detach().cpu().numpy()
    return state.tobytes() if isinstance(state, np.ndarray) else state


def plain_values(thing: object) -> object:
    """Return the numbers among the attributes of *thing*, to compare them later."""
    values = getattr(thing, "__dict__", {})
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str, bool))}
