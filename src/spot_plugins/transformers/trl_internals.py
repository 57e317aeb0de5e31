"""
Names of TRL that this package uses, none of which is documented. Checked against trl 1.16.

They are only looked for, so a trainer that is none of TRL's does without. :data:`METRICS` and the names after it are
compared with the sources of TRL by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from accelerate.utils import send_to_device
from transformers import Trainer

from . import internals

METRICS: Final = ("_metrics", "_total_train_tokens")
"""Counters of the trainers of TRL."""

GENERATIONS: Final = "_buffered_inputs"
"""Attribute of a trainer of TRL for what it has generated, on which it trains for one or several steps."""

GENERATED: Final = ("_step", "_logs", "log_completions", "use_vllm", "_is_vlm")
"""Further attributes of the trainers of TRL that generate."""

ENTROPY: Final = ("entropy_coef", "_last_world_entropy")
"""Numbers by which a trainer of TRL controls the entropy. Not all of them have these."""


def metrics(trainer: Trainer) -> dict[str, Any]:
    """Return the metrics since the last log, and the tokens so far, that a trainer of TRL counts. Else nothing."""
    return {name: getattr(trainer, name) for name in METRICS if hasattr(trainer, name)}


def set_metrics(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Set what :func:`metrics` returned."""
    for mode, values in saved.get("_metrics", {}).items():
        trainer._metrics[mode].update(values)
    if "_total_train_tokens" in saved:
        trainer._total_train_tokens = saved["_total_train_tokens"]


def is_experimental(trainer: Trainer) -> bool:
    """Return True if *trainer* is one of TRL's experimental ones, or derived from one."""
    return _is_of(trainer, "trl.experimental.")


def _is_of(trainer: Trainer, package: str) -> bool:
    return any(each.__module__.startswith(package) for each in type(trainer).__mro__)


def generates(trainer: Trainer) -> bool:
    """Return True for a trainer of TRL that trains on what it generates."""
    return hasattr(trainer, GENERATIONS)


def generates_from_images(trainer: Trainer) -> bool:
    """Return True if a trainer of TRL that generates has a processor of images."""
    return bool(trainer._is_vlm)


def generations(trainer: Trainer) -> dict[str, Any]:
    """
    Return the state of a trainer of TRL that generates.

    What it has generated is part of the state only if it trains another step on it. The texts are part of the state if
    a log has them.
    """
    is_spent = trainer._step % (_batches_per_generation(trainer) * getattr(trainer, "num_iterations", 1)) == 0
    return {
        "step": trainer._step,
        "shape": shape_of_generations(trainer),
        "inputs": None if is_spent else trainer._buffered_inputs,
        "texts": _texts(trainer) if trainer.log_completions else {},
        "entropy": [getattr(trainer, name, None) for name in ENTROPY],
    }


def set_generations(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Set what :func:`generations` returned."""
    trainer._step = saved["step"]
    trainer._buffered_inputs = send_to_device(saved["inputs"], trainer.accelerator.device)
    for name, texts in saved["texts"].items():
        deques = trainer._logs[name]
        if isinstance(texts, dict):
            for key, items in texts.items():
                deques[key].extend(items)
        else:
            deques.extend(texts)
    for name, value in zip(ENTROPY, saved["entropy"], strict=True):
        if value is not None:
            setattr(trainer, name, value)


def shape_of_generations(trainer: Trainer) -> dict[str, int]:
    """Return the numbers by which a generation is divided into batches of the ranks."""
    return {
        "world_size": trainer.args.world_size,
        "per_device_train_batch_size": internals.batch_size(trainer),
        "steps_per_generation": _batches_per_generation(trainer),
        "num_iterations": getattr(trainer, "num_iterations", 1),
        "num_generations": getattr(trainer, "num_generations", 1),
    }


def _batches_per_generation(trainer: Trainer) -> int:
    args = trainer.args
    return int(getattr(args, "steps_per_generation", args.gradient_accumulation_steps))


def _texts(trainer: Trainer) -> dict[str, Any]:
    """Return the texts of the last generation as lists, without the images."""
    return {
        name: {key: [*items] for key, items in texts.items()} if isinstance(texts, dict) else [*texts]
        for name, texts in trainer._logs.items()
        if name != "images"
    }


def untrained_models(trainer: Trainer) -> list[torch.nn.Module]:
    """Return the models that a trainer of TRL uses beside its own, and never changes."""
    if not _is_of(trainer, "trl.trainer."):
        return []
    found = [getattr(trainer, "teacher_model", None), *getattr(trainer, "reward_funcs", ())]
    if synchronized_model(trainer) is None:
        found.append(getattr(trainer, "ref_model", None))
    return [each for each in found if isinstance(each, torch.nn.Module)]


def synchronized_model(trainer: Trainer) -> torch.nn.Module | None:
    """Return the reference model that a trainer of TRL moves towards its own model, or None."""
    return trainer.ref_model if getattr(trainer.args, "sync_ref_model", False) else None
