"""
Descriptions of what a program has built, as plain JSON: the facts that two attempts of one run are compared by.

A description never fails. What cannot be described in few words is left out.
"""

from __future__ import annotations

import enum
import functools
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias

import numpy as np
import torch
import xxhash
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from .. import __version__
from ..data import ElasticSampler, samplers

Facts: TypeAlias = "dict[str, Any]"
"""The facts about one thing, such as an optimizer. ``is`` names its kind."""

MAX_ITEMS: Final = 64
MAX_CHARACTERS: Final = 200
MAX_DEPTH: Final = 3

OMIT: Final = object()
"""Stands for a value that has no plain form."""

_CHANGING: Final = frozenset(
    {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i", "mode_worse", "base_lrs", "verbose"}
)
"""Public attributes of torch's schedulers that are no settings of their own."""


def plain(value: Any, depth: int = 0) -> Any:
    """Return *value* as JSON has it, or :data:`OMIT`."""
    try:
        return _plain(value, depth)
    except Exception:  # noqa: BLE001 - any object of the program may be here, and no fact is worth an error
        return OMIT


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth)
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        number = value.item()
        # The shortest decimal of a float32, so that the tensor of 0.1 is equal to the number 0.1.
        return float(f"{number:.7g}") if isinstance(number, float) else _plain(number, depth)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str | os.PathLike):
        text = str(value)
        return text if len(text) <= MAX_CHARACTERS else OMIT
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset) and depth < MAX_DEPTH and len(value) <= MAX_ITEMS:
        items = [plain(each, depth + 1) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
        return OMIT if OMIT in items else items
    if isinstance(value, Mapping) and depth < MAX_DEPTH and len(value) <= MAX_ITEMS:
        return plain_fields({str(key): item for key, item in value.items()}, depth + 1)
    return OMIT


def plain_fields(values: Mapping[str, Any], depth: int = 0) -> Facts:
    """Return the entries of *values* that have a plain form, by sorted name."""
    found = {name: plain(values[name], depth) for name in sorted(values)[: 4 * MAX_ITEMS]}
    return {name: value for name, value in found.items() if value is not OMIT}


def describe(thing: Any) -> Facts | None:
    """Return the facts about a part of the training. None if there are none."""
    with suppress(Exception):
        scheduler = scheduler_in(thing)
        if isinstance(thing, torch.optim.Optimizer):
            return _optimizer(thing)
        if isinstance(thing, nn.Module):
            return _model(thing)
        if scheduler is not None:
            return _scheduler(scheduler)
        if not type(thing).__module__.startswith("spot_plugins"):
            return {"is": "part", "class": type(thing).__qualname__}
    return None


def _optimizer(optimizer: torch.optim.Optimizer) -> Facts:
    groups = [_group(group) for group in optimizer.param_groups[:MAX_ITEMS]]
    return {"is": "optimizer", **_classes(optimizer), "groups": groups}


def _classes(thing: Any) -> Facts:
    """Return the name of the class of *thing*, and of the class of torch that it is derived from."""
    of_torch = (each.__name__ for each in type(thing).__mro__ if each.__module__.startswith("torch.optim"))
    return {"class": type(thing).__name__, "base": next(of_torch, None)}


def _group(group: Mapping[str, Any]) -> Facts:
    settings = plain_fields({str(name): value for name, value in group.items() if name not in ("params", "initial_lr")})
    # A scheduler has perhaps changed the rate already. It keeps the one that the program has given.
    initial = plain(group.get("initial_lr", group.get("lr")))
    return settings if initial is OMIT or "lr" not in settings else {**settings, "lr": initial}


def scheduler_in(thing: Any) -> Any:
    """Return the scheduler in *thing*, which a host may have wrapped. None if it is none."""
    inner = getattr(thing, "scheduler", None)
    thing = inner if isinstance(inner, LRScheduler) else thing
    is_like_one = hasattr(thing, "optimizer") and hasattr(thing, "step") and hasattr(thing, "state_dict")
    return thing if isinstance(thing, LRScheduler) or (is_like_one and not hasattr(thing, "param_groups")) else None


def _scheduler(scheduler: Any, depth: int = 0) -> Facts:
    settings: Facts = {}
    functions: Facts = {}
    inner: list[Facts] = []
    for name, value in vars(scheduler).items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if values and all(isinstance(each, LRScheduler) for each in values) and depth < MAX_DEPTH:
            inner += [_scheduler(each, depth + 1) for each in values[:MAX_ITEMS]]
        elif name.startswith("_") or name in _CHANGING or name == "optimizer":
            continue
        elif values and all(callable(each) for each in values):
            functions[name] = [_function(each) for each in values[:MAX_ITEMS]]
        else:
            settings[name] = value
    return {
        "is": "scheduler",
        **_classes(scheduler),
        "settings": plain_fields(settings),
        "functions": functions,
        "inner": inner,
    }


def _function(function: Callable[..., Any]) -> Facts:
    """
    Return the values that *function* is bound to or reads by name, and a hash of its code.

    Of an object that is called, torch saves the attributes. They are its ``state``.
    """
    values: dict[str, Any] = {}
    owners: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        values = {**{f"argument {at}": each for at, each in enumerate(function.args)}, **function.keywords, **values}
        function = function.func
    if isinstance(function, MethodType):
        owners["self"] = function.__self__
        function = function.__func__
    if not isinstance(function, FunctionType):
        state = {name: value for name, value in getattr(function, "__dict__", {}).items() if not name.startswith("_")}
        return {"values": plain_fields(values), "state": plain_fields(state)}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            values.setdefault(name, cell.cell_contents)
            owners[name] = cell.cell_contents
    code = function.__code__
    values = {**{name: function.__globals__[name] for name in code.co_names if name in function.__globals__}, **values}
    for name, owner in owners.items():
        attributes = getattr(owner, "__dict__", {})  # no property is asked, because it may run code of the program
        values.update({f"{name}.{each}": attributes[each] for each in code.co_names if each in attributes})
    constants = [each for each in code.co_consts if isinstance(each, int | float | str | bytes | tuple | None)]
    text = repr((code.co_code, constants, code.co_names)) if not any(map(_has_code, code.co_consts)) else ""
    return {"values": plain_fields(values), "code": xxhash.xxh3_64_hexdigest(text.encode())}


def _has_code(constant: Any) -> bool:
    return hasattr(constant, "co_code")


def _model(module: nn.Module) -> Facts:
    """Return the class of *module*, and how often each module of torch with its settings is in it."""
    counts: Counter[str] = Counter()
    for each in module.modules():
        own = _own_class(each)
        if own is not None and own.__module__.startswith("torch.nn.modules"):
            counts[f"{own.__name__}({each.extra_repr()})"[:MAX_CHARACTERS]] += 1
    own = _own_class(module)
    modules = dict(sorted(counts.items())) if len(counts) <= MAX_ITEMS else {}
    return {"is": "model", "class": None if own is None else own.__name__, "modules": modules}


def _own_class(module: nn.Module) -> type | None:
    """Return the class of *module* as the program wrote it, without the classes of FSDP."""
    found = next(each for each in type(module).__mro__ if not each.__module__.startswith("torch.distributed"))
    return None if found is nn.Module else found


def describe_loader(loader: Any) -> Facts:
    """Return the facts about a training loader: its data, its batches and its workers."""
    with suppress(Exception):
        return _loader(loader)
    return {"is": "loader"}


def _loader(loader: Any) -> Facts:
    loader = getattr(loader, "base_dataloader", loader)  # as Accelerate wraps some of them
    facts: Facts = {"is": "loader", "class": _bare_name(loader)}
    dataset = getattr(loader, "dataset", None)
    values = {
        "data set": None if dataset is None else type(dataset).__name__,
        "samples": _length(dataset),
        "batch_size": _batch_size(loader),
        # With an elastic sampler neither the samples nor what is drawn in them depends on the workers.
        "num_workers": None if _is_elastic(loader) else getattr(loader, "num_workers", None),
    }
    return {**facts, **{name: value for name, value in plain_fields(values).items() if value is not None}}


def _is_elastic(loader: Any) -> bool:
    return any(isinstance(each, ElasticSampler) for each in samplers(loader))


def _bare_name(loader: Any) -> str:
    """Return the name of the class of torch or of the program, without that of a host's own."""
    hosts = ("accelerate.", "lightning.")
    return next(each.__name__ for each in type(loader).__mro__ if not each.__module__.startswith(hosts))


def _batch_size(loader: Any) -> Any:
    for holder in (loader, getattr(loader, "batch_sampler", None)):
        if (found := getattr(holder, "batch_size", None)) is not None:
            return found
    return None


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # noqa: BLE001 - a stream has none, and a data set may raise anything
        return None


def describe_process(device: str | None) -> dict[str, Facts]:
    """Return the facts about this process: software, numbers and seed. *device* is where the training runs."""
    numbers: dict[str, Any] = {
        "device": device,
        "default dtype": torch.get_default_dtype(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
    if device == "cuda":
        with suppress(Exception):
            numbers["GPU"] = torch.cuda.get_device_name()
    software = {"python": platform.python_version(), "torch": str(torch.__version__), "spot_plugins": __version__}
    return {
        "software": {"is": "software", **software},
        "numbers": {"is": "settings", **plain_fields(numbers)},
        "seed": {"is": "seed", "seed": str(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed())},
    }


def device_of(things: Iterable[Any]) -> str | None:
    """Return the kind of device of the first parameter of a model among *things*."""
    for thing in things:
        if isinstance(thing, nn.Module):
            for parameter in thing.parameters():
                return parameter.device.type
    return None
