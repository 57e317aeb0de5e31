"""Folders of Accelerate, as ``save_state`` would have written them on one device or with DDP. It is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ..errors import ConfigError
from ..resume.manifests import manifests_of
from ..resume.stored import choose_step, no_damage_if_pruned, open_run
from ..resume.weights import KINDS, Weight, Weights, entry_of, items_of, parts_with
from ..state import by_index
from ..state.scaler import numbers_of
from .outputs import Exported, check_new, exported, new_folder
from .safetensors import write_tensors
from .stored_state import StoredState
from .torch_stream import write_state

_OWN: Final = frozenset({"accelerator", "fingerprints", "position", "program", "rng", "scaler"})
"""Parts that this package needs for itself, or that have files of their own."""

_NUMBERED: Final = ("model-", "optimizer-", "scheduler-", "custom-")


def export_accelerate(
    url: str,
    out: str | os.PathLike[str],
    step: int | None = None,
    *,
    kept: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """
    Write a committed step of a training with Accelerate to *out*, a folder for ``accelerator.load_state(...)``.

    It has models, optimizers, schedulers, the gradient scaler, registered objects, and the random streams of each rank.
    The position in the data is left out. A few tensors are in memory at a time.

    Arguments and errors are those of :func:`~.safetensors.export_weights`.
    """
    check_new(out)
    store = open_run(url, storage_options)
    committed = choose_step(store, step, kept=kept)
    with no_damage_if_pruned(store, committed.step_id):
        manifests = manifests_of(store, committed)
    state = manifests[0].state
    if not isinstance(entry_of(state, "accelerator"), dict):
        raise ConfigError("this run was not trained with Accelerate, so it has no state that load_state could load")
    names = [name for name in parts_with(manifests, KINDS) if name.startswith("model-")]
    models = [Weights(store, committed.step_id, manifests, name) for name in names]
    if not models:
        raise ConfigError("no model was prepared in this run, so it has no state that load_state could load")
    stored = StoredState(models[0])
    with new_folder(out) as folder:
        for number, weights in enumerate(models):
            _write_model(folder, number, weights)
        for number, name in enumerate(each for each in stored.optimizers() if each.startswith("optimizer-")):
            with stored.errors():
                optimizer = by_index(stored.part(name))
            _write_state(folder / _numbered("optimizer.bin", number), optimizer, stored)
        for number, value in enumerate(_parts(stored, "scheduler")):
            _write_state(folder / _numbered("scheduler.bin", number), value, stored)
        for number, value in enumerate(_parts(stored, "custom")):
            _write_state(folder / f"custom_checkpoint_{number}.pkl", value, stored)
        if (scaler := stored.whole_part("scaler")) is not None:
            with stored.errors():
                torch.save(numbers_of(scaler), folder / "scaler.pt")
        counters = stored.whole_part("accelerator")
        for manifest in manifests:
            streams = stored.part_of_rank("rng", manifest.rank)
            with stored.errors():
                states = _streams(streams, counters["step"])
            torch.save(states, folder / f"random_states_{manifest.rank}.pkl")
    notes = ["the position in the data is left out, so the next epoch begins with its first batch"]
    notes += [f"{name} is left out, because load_state loads no such thing" for name in _left_out(state)]
    if entry_of(entry_of(entry_of(state, "accelerator"), "schedules"), "found"):
        notes.append("schedulers that were not prepared are left out, because load_state loads none")
    return exported(models[0], list(_written(models, stored)), notes)


def _write_model(folder: Path, number: int, weights: Weights) -> None:
    """Write a model as safetensors, or as a file of torch if it has extra state that is no tensor."""
    if weights.left_out:
        stored = StoredState(weights)
        state = stored.any_part(weights.part)
        with stored.errors():
            values = {name: value for kind in KINDS for name, value in state[kind].items()}
        _write_state(folder / _numbered("pytorch_model.bin", number), values, stored)
        return
    with (folder / _numbered("model.safetensors", number)).open("xb") as file:
        write_tensors(file, weights, _untied(weights.tensors))


def _write_state(path: Path, state: Any, stored: StoredState) -> None:
    with path.open("xb") as file:
        write_state(file, state, stored)


def _untied(tensors: Sequence[Weight]) -> list[Weight]:
    """Return the first of the tensors that have the same memory, because ``load_state`` refuses a second name."""
    first: dict[Any, Weight] = {}
    for each in tensors:
        first.setdefault(tuple((manifest.rank, piece.name) for manifest, piece in each.pieces), each)
    return list(first.values())


def _numbered(name: str, number: int) -> str:
    """Return *name* with the *number* of the object, which the first one has not."""
    stem, dot, end = name.partition(".")
    return name if number == 0 else f"{stem}_{number}{dot}{end}"


def _parts(stored: StoredState, stem: str) -> Iterator[Any]:
    number = 0
    while (state := stored.any_part(f"{stem}-{number}")) is not None:
        yield state
        number += 1


def _streams(rng: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the random streams of a rank with the keys of Accelerate. *step* is its counter of batches."""
    numpy = rng["numpy"]
    position = numpy["state"]
    states = {
        "step": step,
        "random_state": rng["python"],
        "numpy_random_seed": (
            *(numpy["bit_generator"], position["key"], position["pos"]),
            *(numpy["has_gauss"], numpy["gauss"]),
        ),
        "torch_manual_seed": rng["torch"],
    }
    return states | ({"torch_cuda_manual_seed": rng["cuda"]} if rng["cuda"] else {})


def _left_out(state: Any) -> list[str]:
    """Return the names of the parts that the program has registered itself."""
    return [name for name, _ in items_of(state) if name not in _OWN and not name.startswith(_NUMBERED)]


def _written(models: Sequence[Weights], stored: StoredState) -> Iterator[Weight]:
    for weights in models:
        yield from _untied(weights.tensors)
    for name in stored.optimizers():
        if name.startswith("optimizer-"):
            yield from stored.weights_of(stored.part(name))
