"""Files for ``torch.load`` whose tensors are written one after the other, so that few of them are in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.serialization import set_default_mmap_options, skip_data

from .stored_state import StoredState


def write_state(path: Path, state: Any, stored: StoredState) -> None:
    """
    Write *state*, which has tensors of *stored* without their data, as ``torch.save`` would write it with the data.

    torch writes the file without the bytes of the tensors. Then they are read and copied into the file, as memory.
    A reader of zip files that compares checksums finds another one than the file says. ``torch.load`` compares none.

    Raises:
        OSError: The file cannot be written.
        SpotError: As :meth:`.StoredState.read`.
    """
    tensors = list({id(each): each for each in _tensors_in(state)}.values())
    # Memory that nobody touches, so the system gives none for it.
    with skip_data():
        torch.save(deepcopy(state, {id(each): torch.empty(each.shape, dtype=each.dtype) for each in tensors}), path)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)  # a full disk would end the process further below
    with set_default_mmap_options(mmap.MAP_SHARED):
        written = torch.load(path, mmap=True, weights_only=True)
    targets = list({id(each): each for each in _tensors_in(written)}.values())
    for target, (_, read) in zip(targets, stored.read(tensors), strict=True):
        target.copy_(read)


def _tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in *state* in the order of its containers."""
    if isinstance(state, torch.Tensor):
        yield state
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    for each in inner:
        yield from _tensors_in(each)
