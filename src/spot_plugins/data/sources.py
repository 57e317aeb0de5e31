"""Data sets and samplers of a loader, and what they count and order by."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils.data import Dataset, Sampler

from .unwrap import batch_samplers, plain_loader, samplers

MAX_SOURCES: Final = 64
MAX_ELEMENTS: Final = 1024


def sources_of(loader: Any) -> list[Any]:
    """Return the data set and the samplers of *loader*, with those in them, such as the one below a ``Subset``."""
    found: list[Any] = []
    waiting = [getattr(plain_loader(loader), "dataset", None), *samplers(loader), *batch_samplers(loader)]
    while waiting and len(found) < MAX_SOURCES:
        thing = waiting.pop()
        if thing is None or any(thing is each for each in found):
            continue
        found.append(thing)
        attributes = getattr(thing, "__dict__", {})
        waiting += [each for each in attributes.values() if isinstance(each, (Dataset, Sampler))]
        waiting += [attributes[name] for name in ("_recorded", "data_source", "sampler") if name in attributes]
        several = attributes.get("datasets")
        waiting += several[:MAX_SOURCES] if isinstance(several, list) else []
    return found


def numbers_of(source: object) -> dict[str, object]:
    """
    Return the numbers of *source* and its lists, arrays and contiguous tensors, cut off after 1024 elements.

    An attribute ``epoch`` is left out if ``set_epoch()`` sets it.
    """
    found: dict[str, object] = {}
    for name, value in getattr(source, "__dict__", {}).items():
        if type(value) in (int, float) and not (name == "epoch" and hasattr(source, "set_epoch")):
            found[name] = value
        elif type(value) is list and all(type(each) in (int, float, str) for each in value[:MAX_ELEMENTS]):
            found[name] = value[:MAX_ELEMENTS]
        elif type(value) is torch.Tensor and _is_plain(value):
            found[name] = value.view(-1)[:MAX_ELEMENTS].tolist()
        elif (type(value).__module__, type(value).__name__) == ("numpy", "ndarray") and not value.dtype.hasobject:
            found[name] = value.flat[:MAX_ELEMENTS].tobytes()
    return found


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return True if a part of *tensor* can be looked at without a copy of all of it, and without a wait."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
