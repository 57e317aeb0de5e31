"""Files for ``torch.load`` whose tensors are written one after the other, so that few of them are in memory."""

from __future__ import annotations

import os
import struct
import zipfile
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch.serialization import skip_data

from .stored_state import StoredState

_LENGTHS: Final = struct.Struct("<26xHH")
"""The begin of what a zip file has before a member, with the lengths of the two fields that follow it."""

_CONTAINERS: Final = (list, tuple, deque, set, frozenset)


def write_state(file: BinaryIO, state: Any, stored: StoredState) -> None:
    """
    Write *state* to the new *file* as ``torch.save`` does, but read the tensors without data from *stored* meanwhile.

    torch writes the file without the bytes of the tensors, which are then written to their places.
    A reader of zip files that compares checksums finds another one than the file says. ``torch.load`` compares none.

    Raises:
        OSError: The file cannot be written.
        SpotError: As :meth:`.StoredState.read`.
    """
    # Memory that nobody touches, so the system gives none for it.
    empty = {id(each): torch.empty(each.shape, dtype=each.dtype) for each in _tensors_in(state)}
    copied = deepcopy(state, empty)
    with skip_data():
        torch.save(copied, file)
    file.flush()
    places = dict(zip(dict.fromkeys(map(id, _tensors_in(copied))), _places(Path(file.name)), strict=True))
    tensors = {id(each): each for each in _tensors_in(state)}
    for tensor in tensors.values():
        if not tensor.is_meta:
            _write(file, places[id(empty[id(tensor)])], tensor)
    for tensor, data in stored.read([each for each in tensors.values() if each.is_meta]):
        _write(file, places[id(empty[id(tensor)])], data)
        del data  # before the next one is read


def _write(file: BinaryIO, place: int, tensor: torch.Tensor) -> None:
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    while data:
        written = os.pwrite(file.fileno(), data, place)
        data, place = data[written:], place + written


def _places(path: Path) -> Iterator[int]:
    """Yield the places of the bytes of the tensors in the file, in the order in which torch met the tensors."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for each in archive.infolist():
            if each.filename.split("/")[1] == "data":
                file.seek(each.header_offset)
                header = file.read(_LENGTHS.size)
                yield each.header_offset + len(header) + sum(_LENGTHS.unpack(header))


def _tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in *state* in the order in which pickle meets them."""
    if isinstance(state, torch.Tensor):
        yield state
    inner = state.items() if isinstance(state, dict) else state if isinstance(state, _CONTAINERS) else ()
    for each in inner:
        yield from _tensors_in(each)
