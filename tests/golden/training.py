"""
What the trainings whose checkpoints lie in ``data/`` have in common: a model, data, random streams and records.

No number in them depends on the CPU. Weights, gradients and learning rates are small integers and powers of two, so no
operation rounds, and the order of a sum does not matter.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hearing import until
from torch import nn

EPOCHS = 2
STEPS_PER_EPOCH = 4
STORED = 6
"""The step that is stored: in the middle of the second epoch."""

SETTINGS: dict[str, Any] = {"notice_sources": (), "keep_last": 2}
"""Settings that every program has. Without notice sources nothing depends on the machine."""


class StoppedError(Exception):
    """Ends a training in the middle, as a crash does."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The training of one rank between two steps, as it is when a batch has been taken and not yet trained on."""

    step: int
    samples: Any
    """The batch, or None at the end of the training."""
    state: Any
    """Everything that the training consists of, as :func:`plain` returns it."""


def plain(value: Any) -> Any:
    """Return *value* as nested tuples that are equal exactly if types, bits and order are equal."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        flat = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        return kind, str(value.dtype), tuple(value.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        items = tuple((plain(key), plain(item)) for key, item in value.items())
        return kind, items, getattr(value, "default_factory", None)
    if isinstance(value, set | frozenset):
        return kind, frozenset(plain(item) for item in value)
    if isinstance(value, list | tuple | deque):
        return kind, tuple(plain(item) for item in value), getattr(value, "maxlen", None)
    if isinstance(value, float):
        return kind, value.hex()
    return kind, (value.real.hex(), value.imag.hex()) if isinstance(value, complex) else value


def seed_streams(rank: int = 0) -> None:
    """Begin the global random streams, and draw from each of them."""
    random.seed(10 * rank + 1)
    np.random.seed(10 * rank + 2)
    torch.manual_seed(10 * rank + 3)
    draw()


def draw() -> int:
    """Draw a small integer from each global random stream, and return the sum."""
    return random.randrange(4) + int(np.random.randint(4)) + int(torch.randint(4, ()))


def samples() -> torch.Tensor:
    """Return the data set, a row for each sample."""
    return torch.arange(32.0).view(8, 4)


def small_model() -> nn.Linear:
    """Return a model whose weights are small integers."""
    model = nn.Linear(4, 8)
    with torch.no_grad():
        model.weight.copy_(torch.arange(32).view(8, 4) % 5)
        model.bias.copy_(torch.arange(8))
    return model


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    """Return an optimizer that has state, and whose settings are powers of two."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.5, momentum=0.5)


def scheduler_of(optimizer: Any) -> torch.optim.lr_scheduler.StepLR:
    """Return a scheduler that has changed the learning rate before the stored step."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)


def wait_stored(url: str, step: int, world_size: int = 1) -> None:
    """Wait for the object that is written after everything else of *step*."""
    name = "rank-00000-of-00001.json" if world_size == 1 else "merged.json"
    last = Path(url.removeprefix("file://"), f"steps/{step:010d}-000001", name)
    until(last.exists, f"{last} is stored")
